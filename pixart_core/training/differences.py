"""How two trainings differ: states, averages, optimiser, log and the batches they saw, bit by bit."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from pixart_core.artifacts.checkpoint import LOG, TRANSFORMER
from pixart_core.artifacts.seal import SEAL
from pixart_core.artifacts.tensor_file import raw_bytes
from pixart_core.training.log import read_rows, without_clock
from pixart_core.training.run import STATES
from pixart_core.training.state import saved_states

# What a clock says.
_CLOCK = "seconds"


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a finished training in both runs.

    Attributes:
        hash: xxh3_128 over its content in the first run, where it is the same in both.
        differences: what differs and by how much, one sentence each; empty: equal to the bit.
    """

    name: str
    hash: str
    differences: tuple[str, ...]


def compare_trainings(a: Path, b: Path, told_a: Path, told_b: Path) -> list[Part]:
    """Every part of two finished outputs; `told_*` are the folders of what a `Request` asked for."""
    last = [saved_states(folder / STATES)[-1] for folder in (a, b)]
    names = sorted({path.name for state in last for path in state.iterdir()} - {SEAL})
    parts = [_part(name.partition(".")[0], *(_content(state / name) for state in last)) for name in names]
    published = [folder / TRANSFORMER / "diffusion_pytorch_model.safetensors" for folder in (a, b)]
    if all(path.exists() for path in published):
        parts.append(_part("published weights", *map(_content, published)))
    rows = [{str(row["step"]): without_clock(row) for row in read_rows(folder / LOG)} for folder in (a, b)]
    parts.append(_part("log", *rows))
    return [*parts, _part("data order", _batches(told_a), _batches(told_b))]


def _part(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Part:
    hasher = xxhash.xxh3_128()
    differences = []
    for key in sorted(a.keys() | b.keys()):
        if key not in a or key not in b:
            differences.append(f"{key} is in one of the runs only")
            continue
        hasher.update(key.encode())
        hasher.update(_raw(a[key]))
        if (difference := _difference(a[key], b[key])) is not None:
            differences.append(f"{key}: {difference}")
    return Part(name, hasher.hexdigest(), tuple(differences))


def _difference(a: Any, b: Any) -> str | None:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return None if a == b else f"{a} and {b}"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
    if bytes(_raw(a)) == bytes(_raw(b)):
        return None
    apart = (a.double() - b.double()).abs()
    return f"{int((a != b).sum())} of {a.numel()} numbers, by at most {float(apart.max()):.3g}"


def _raw(value: Any) -> Any:
    """The bytes of a tensor (NaN and -0 included), or of a value as JSON."""
    if isinstance(value, Tensor):
        return raw_bytes(value)
    return json.dumps(value, sort_keys=True, default=str).encode()


def _content(path: Path) -> dict[str, Any]:
    """Name and value of everything in a file of a state."""
    if not path.exists():
        return {}
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".json":
        values = json.loads(path.read_text())
    else:
        values = torch.load(path, weights_only=True, map_location="cpu")
    return {name: value for name, value in _leaves(values) if name.split(".")[0] != _CLOCK}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of what nested dicts and lists hold."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _leaves(item, f"{name}.{key}".lstrip("."))
    if not isinstance(value, dict | list):
        yield name, value


def _batches(told: Path) -> dict[str, Any]:
    """The micro-batches that the processes saw; one that was seen again after a kill counts each time."""
    seen: dict[str, Any] = {}
    for file in sorted(told.glob("*.jsonl")):
        for row in read_rows(file):
            if "hash" not in row:
                continue
            key = f"{file.stem}, step {row['step']}, micro-batch {row['micro_batch']}"
            if seen.setdefault(key, row["hash"]) != row["hash"]:
                seen[f"{key}, again"] = row["hash"]
    return seen
