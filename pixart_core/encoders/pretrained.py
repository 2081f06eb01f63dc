"""Finding and loading models in Hugging Face layout, with errors that say what to do."""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pixart_core.encoders.offload import let_go
from pixart_core.errors import UserError

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def locate(source: str, part: str) -> dict[str, Any]:
    """Where `part` (e.g. "vae") of `source` lies, as arguments of `from_pretrained`.

    For a repository of the hub, `revision` is the commit: what is loaded is what a card then names.

    Args:
        source: a folder that is the part or contains it (a pipeline, the output of `pixart encoders`), or
            the hub id of either.

    Raises:
        UserError: a path that is no folder, a folder or hub repository that holds nothing of that name,
            or a repository that cannot be reached and is not in the cache.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if (folder / part / "config.json").is_file():
            return {"pretrained_model_name_or_path": str(folder / part)}
        if (folder / "config.json").is_file():
            return {"pretrained_model_name_or_path": str(folder)}
        raise UserError(f"{source} holds neither config.json nor {part}/config.json; expected a {part}")
    if folder.exists() or not _HUB_ID.fullmatch(source):
        raise UserError(f"{source} is not a folder; give the folder or the hub id of a {part}")
    return _locate_on_hub(source, part)


def _locate_on_hub(repository: str, part: str) -> dict[str, Any]:
    from huggingface_hub import HfApi, try_to_load_from_cache

    place: dict[str, Any] = {"pretrained_model_name_or_path": repository}
    configs = {f"{part}/config.json": {"subfolder": part}, "config.json": {}}
    try:
        # Asked once, without the retries of a download: a machine without network shall say so at once.
        found = HfApi().model_info(repository, timeout=20)
    except Exception as error:  # no network, offline mode, no such repository, no access: many classes
        for config, where in configs.items():
            cached = try_to_load_from_cache(repository, config)
            if isinstance(cached, str):
                return place | where | {"local_files_only": True, "revision": _cached_commit(cached)}
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{part} {repository!r}: no folder of that name here, not in the Hugging Face cache, and the hub "
            f"cannot give it ({reason})"
        ) from error
    files = {sibling.rfilename for sibling in found.siblings or []}
    for config, where in configs.items():
        if config in files:
            return place | where | {"revision": found.sha}
    raise UserError(f"{repository} on the hub holds neither config.json nor {part}/config.json")


def _cached_commit(path: str) -> str | None:
    """The commit in `.../snapshots/COMMIT/...` of the Hugging Face cache."""
    parts = Path(path).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def short_name(source: str) -> str:
    """A hub id as it is, of a path the last name: cards hold no absolute paths."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def quiet() -> None:
    """Hide transformers' bars of milliseconds; downloads have bars of their own."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


@contextlib.contextmanager
def loading(source: str, part: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises into a `UserError`."""
    quiet()
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: cannot load the {part}: {reason}") from error


def refuse_missing(source: str, part: str, missing: list[str]) -> None:
    """Raise for weights that the files lack: `from_pretrained` would draw them at random."""
    if missing:
        raise UserError(f"{source}: the {part} lacks {len(missing)} weights, e.g. {sorted(missing)[0]}")


def weight_hash(model: nn.Module, *, untouched: bool = False) -> str:
    """16 hex digits over names, types and bits of all weights, whatever file they came from.

    Args:
        untouched: nothing was written to the weights since they were loaded. Of those that are mapped from a
            file, no more than one is then in the memory because of this.
    """
    return tensors_hash(model.state_dict(), untouched=untouched)


def tensors_hash(tensors: Mapping[str, Tensor], *, untouched: bool = False) -> str:
    """`weight_hash` of tensors by their names."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if untouched:
            let_go(tensor)
    return digest.hexdigest()
