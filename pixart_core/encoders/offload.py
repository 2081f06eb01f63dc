"""A model whose weights stay in the file (or on the CPU) and visit the device one layer at a time."""

import ctypes
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4  # MADV_DONTNEED of Linux


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
    if tensor.device.type != "cpu" or first >= last or not _is_of_a_file(first, last):
        return False
    madvise: Any = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return bool(madvise(first, last - first, _DONTNEED) == 0)


def _is_of_a_file(start: int, end: int) -> bool:
    """Whether these addresses are one mapping of a file.

    Of memory without a file behind it, letting go would make zeros.
    """
    try:
        with _MAPS.open() as maps:
            for line in maps:
                addresses, _, _, _, inode, *_ = line.split()
                low, high = (int(address, 16) for address in addresses.split("-"))
                if low <= start and end <= high:
                    return inode != "0"
    except OSError:
        pass
    return False
