"""Read tensors from single files that others made, without ever running what is in them."""

import argparse
import dataclasses
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixart_core.errors import UserError

# Where a container keeps its weights: (EMA, plain). Official PixArt first, then DiT's training script.
CONTAINER_KEYS = (("state_dict_ema", "state_dict"), ("ema", "model"))
# What data-parallel, compiled and distilled models (and ComfyUI) put in front of every name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "diffusion_model.")
# How other files begin that a path may name by mistake, and what they are.
OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights; run `git lfs pull` for them"),
    (b"<!doctype", "a web page, not the weights; download the file again"),
    (b"<html", "a web page, not the weights; download the file again"),
    (b"{", "a text file (JSON), not the weights; give the folder that it lies in"),
    (b"[", "a text file (JSON), not the weights"),
    (b"\x89png", "a picture, not weights"),
    (b"\xff\xd8\xff", "a picture, not weights"),
    (b"gif8", "a picture, not weights"),
    (b"gguf", "a GGUF file (quantised weights); give the original .safetensors or .pth"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x93numpy", "a NumPy array; expected named weights"),
)
EXPECTED_FILE = "expected a .pt, .pth or .safetensors file (or a folder with transformer/ or config.json)"


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The weights of a file and what else is beside them.

    Attributes:
        ema: averaged weights, None when the file has none.
        plain: the weights as trained, None when the file has none.
        container: names of the file's top-level entries; empty for a flat file.
        extra: top-level entries of the container that hold no weights.
    """

    path: Path
    ema: dict[str, Tensor] | None
    plain: dict[str, Tensor] | None
    container: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def weights(self, which: str = "ema") -> dict[str, Tensor]:
        """The EMA weights ("ema", the default) or those as trained ("model"); the other if alone."""
        first, second = (self.ema, self.plain) if which == "ema" else (self.plain, self.ema)
        found = first if first is not None else second
        assert found is not None, "a WeightFile holds weights"
        return found


def read_weight_file(path: Path) -> WeightFile:
    """Read a `.safetensors`, `.pt` or `.pth` file, memory-mapped where its layout allows.

    Raises:
        UserError: missing, truncated, not such a file, or a pickle with more than plain data in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    start = _first_bytes(path)
    # By content, not by name: a safetensors file is a length, then a JSON object.
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return WeightFile(path, ema=None, plain=_unwrapped(_read_safetensors(path)))
    content = _read_pickle(path, start)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    return _split_container(path, content)


def _split_container(path: Path, content: dict[str, Any]) -> WeightFile:
    for names in CONTAINER_KEYS:
        sets = [_tensors(content.get(name)) for name in names]
        if any(entry is not None for entry in sets):
            extra = {name: value for name, value in content.items() if name not in names}
            return WeightFile(path, sets[0], sets[1], tuple(map(str, content)), extra)
    flat = _tensors(content)
    if flat is None:
        found = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise UserError(
            f"{path} holds no weights: expected tensors by name, or a container with state_dict "
            f"(PixArt) or model (DiT); found {found}"
        )
    return WeightFile(path, ema=None, plain=flat)


def _tensors(value: object) -> dict[str, Tensor] | None:
    """`value` if it is a non-empty dict of named tensors, wrapper prefixes removed."""
    if not isinstance(value, Mapping) or not value:
        return None
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        return None
    return _unwrapped(dict(value))


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in weights.items()})
    return weights


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise UserError(f"{path} is empty; {EXPECTED_FILE}")
    for beginning, what in OTHER_FILES:
        if start.lstrip().lower().startswith(beginning):
            raise UserError(f"{path} is {what}")
    return start


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError) as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} ({size:,} bytes) is truncated or no safetensors file: {_one_line(error)}"
        ) from error


def _read_pickle(path: Path, start: bytes) -> Any:
    zipped, legacy = start.startswith(b"PK\x03\x04"), start.startswith(b"\x80")
    if not (zipped or legacy):
        raise UserError(f"{path} is no PyTorch file; {EXPECTED_FILE}")
    try:
        # argparse.Namespace is the `args` of DiT's training script: a bag of attributes, harmless.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols before it refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a pickle cut anywhere makes its reader stumble in any way
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript archive (a program), not named weights") from error
        if isinstance(error, pickle.UnpicklingError) and _UNSAFE.search(str(error)):
            raise _unsafe(path, error) from error
        raise _damaged(path, error) from error


_UNSAFE = re.compile("GLOBAL|Unsupported|not allowed|Can only")


def _unsafe(path: Path, error: Exception) -> UserError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    what = f" ({named[1]})" if named else ""
    return UserError(
        f"{path} holds Python objects other than tensors{what} and was not loaded, because loading "
        "it could run code; save its weights as safetensors or as a plain dict of tensors first"
    )


def _damaged(path: Path, error: Exception) -> UserError:
    size = path.stat().st_size
    return UserError(f"{path} ({size:,} bytes) is truncated or no PyTorch file: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
