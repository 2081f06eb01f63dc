"""A model whose weights stay in the file (or on the CPU) and visit the device one layer at a time."""

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4  # MADV_DONTNEED of Linux
_SECONDS = 0.1


def offload_sequentially(model: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Keep the weights where they are, as they are; each layer's come to `device` as `dtype` when it runs.

    Layers compute what they would compute with all weights there. It is made for weights that are mapped from
    a file (as `from_pretrained` leaves those whose type it keeps): what a layer has used is let go.
    """
    from accelerate import cpu_offload

    weights = LettingGo(dict(model.state_dict()))
    # accelerate takes the types from the parameters that it leaves behind, which are without data.
    cpu_offload(model, torch.device(device), state_dict=weights)
    model.to(dtype)


class LettingGo(Mapping[str, Tensor]):
    """Weights by name, of which only the last one asked for need be in the memory."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._last: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._last is not None:
            let_go(self._last)
        self._last = self._weights[name]
        return self._last

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def let_go(tensor: Tensor) -> bool:
    """Give back the memory of a tensor that is mapped from a file; it is read again when it is needed.

    What was written to the tensor would be lost.

    Returns:
        Whether it was: other tensors, and other systems than Linux, are left as they are.
    """
    start = tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.element_size()
    end = start + tensor.numel() * tensor.element_size()
    # Whole pages only: those at the ends hold other tensors, too.
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.device.type != "cpu" or first >= last:
        return False
    # Of memory without a file behind it, letting go would make zeros.
    if not any(low <= first and last <= high for low, high, _ in _mappings()):
        return False
    return _let_go(first, last)


@contextlib.contextmanager
def letting_go(place: Mapping[str, Any]) -> Iterator[None]:
    """While weights are copied to another type or device, give back what has been read of their files.

    Args:
        place: of a model, as arguments of `from_pretrained`; its files are mapped or will be.
    """
    files = _weight_files(place)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(_SECONDS):
            for low, high, path in _mappings():
                if path in files:
                    _let_go(low, high)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _weight_files(place: Mapping[str, Any]) -> frozenset[str]:
    """Real paths of the safetensors of a model here or in the Hugging Face cache."""
    source, inside = place["pretrained_model_name_or_path"], place.get("subfolder")
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = f"{inside}/config.json" if inside else "config.json"
        cached = try_to_load_from_cache(source, config, None, place.get("revision"))
        folder = Path(cached).parent if isinstance(cached, str) else folder
    return frozenset(str(file.resolve()) for file in folder.glob("*.safetensors"))


def _mappings() -> list[tuple[int, int, str]]:
    """First address, end and path of each file that is mapped into this process; none where no one tells."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        if inode != "0":
            low, high = (int(address, 16) for address in addresses.split("-"))
            found.append((low, high, "".join(path)))
    return found


def _let_go(start: int, end: int) -> bool:
    madvise: Any = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return bool(madvise(start, end - start, _DONTNEED) == 0)
