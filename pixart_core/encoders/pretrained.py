"""Finding and loading models in Hugging Face layout, with errors that say what to do."""

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pixart_core.encoders.hub import find_on_hub
from pixart_core.encoders.offload import let_go
from pixart_core.errors import UserError

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(@[\w][\w./-]*)?")


def locate(source: str, part: str) -> dict[str, Any]:
    """Where `part` (e.g. "vae") of `source` lies, as arguments of `from_pretrained`.

    For a repository of the hub, `revision` is the commit: what is loaded is what a card then names.

    Args:
        source: a folder that is the part or contains it (a pipeline, the output of `pixart encoders`), or
            the hub id of either, with or without @REVISION.

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


def _locate_on_hub(source: str, part: str) -> dict[str, Any]:
    model = find_on_hub(source, part)
    inside = next((where for where in (f"{part}/", "") if f"{where}config.json" in model.files), None)
    if inside is None:
        where_else = "in the Hugging Face cache" if model.cached else "on the hub"
        raise UserError(f"{source} {where_else} holds neither config.json nor {part}/config.json")
    folder = model.download([f"{inside}config.json"])
    if model.cached:  # as a folder: a loader that looks for more than there is would ask the hub
        return {"pretrained_model_name_or_path": str(folder / inside), "revision": model.commit}
    place = {"pretrained_model_name_or_path": model.repository, "revision": model.commit}
    return place | ({"subfolder": part} if inside else {})


def short_name(source: str) -> str:
    """A hub id as it is, of a path the last name: cards hold no absolute paths."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def quiet() -> None:
    """Hide transformers' bars of milliseconds (downloads have bars of their own) and diffusers' old words."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument is deprecated")


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
