"""Turns what encoders give into the rows of bytes that feature shards hold, and measures what that costs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.artifacts.quantise import dequantise, quantise
from pixart_core.errors import PixartError

Storage = Literal["int8", "fp16", "fp32"]

_STORED = {"int8": "I8", "fp16": "F16", "fp32": "F32"}
_TOGETHER = 2**17  # values: short captions are packed together, what is longer leaves the cache


class Packer:
    """Turns values into rows of bytes, a batch at a time."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.shapes: dict[str, list[int]] = {}
        self._parts: dict[str, list[np.ndarray]] = {}
        self._squares: dict[str, list[float]] = {}
        self._memory = torch.empty(0)

    def add(self, values: Mapping[str, Float[Tensor, "n ..."]]) -> None:
        """Pack n rows of each of `values`."""
        for name, value in values.items():
            value = value.float()
            shape = list(value.shape[1:])
            if self.shapes.setdefault(name, shape) != shape:
                raise PixartError(f"{name} has rows of {shape} and of {self.shapes[name]}")
            flat = value.reshape(len(value), -1).contiguous()
            for key, stored in self._stored(name, flat).items():
                self._parts.setdefault(key, []).append(stored)

    def rows(
        self, names: Sequence[str], places: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The rows (n, bytes) of `names`, and what lies where in them; they are taken out of the packer.

        Args:
            places: (n,) where each row belongs, in the order in which they were added; default: as added.
        """
        layout: list[dict[str, Any]] = []
        for key in (key for name in names for key in (name, f"{name}_scale") if key in self._parts):
            start = layout[-1]["start"] + layout[-1]["bytes"] if layout else 0
            dtype = "BF16" if key.endswith("_scale") else _STORED[self.storage]
            layout.append(
                {"name": key, "dtype": dtype, "start": start, "bytes": self._parts[key][0].shape[1]}
            )
            if key in self.shapes:
                layout[-1]["shape"] = self.shapes[key]
        count = sum(map(len, self._parts[names[0]]))
        rows = np.empty((count, layout[-1]["start"] + layout[-1]["bytes"]), np.uint8)
        for entry in layout:
            stop = 0
            parts = self._parts.pop(entry["name"])[::-1]
            while parts:  # each is freed at once: `rows` takes as much memory as all of them
                part = parts.pop()
                start, stop = stop, stop + len(part)
                here = slice(start, stop) if places is None else places[start:stop]
                rows[here, entry["start"] : entry["start"] + entry["bytes"]] = part
        return rows, layout

    def errors(self, names: Sequence[str] = ("token",)) -> dict[str, float]:
        """Relative rms error of each of `names`."""
        result = {}
        for name in names:
            difference, size = self._squares[name]
            result[name] = float(f"{math.sqrt(difference / size) if size else 0.0:.4g}")
        return result

    def _stored(self, name: str, flat: Tensor) -> dict[str, np.ndarray]:
        if self.storage == "int8":
            # Latents in groups along the flattened sample, text along the channels of a token.
            codes, scale = quantise(flat)
            self._measure(name, flat, dequantise(codes, scale, self._scratch(flat)))
            return {name: _bytes(codes), f"{name}_scale": _bytes(scale)}
        stored = flat.half() if self.storage == "fp16" else flat.clone()  # the caller may use it again
        self._measure(name, flat, self._scratch(flat).copy_(stored))
        return {name: _bytes(stored)}

    def _measure(self, name: str, value: Tensor, found: Tensor) -> None:
        """Note the error of what is stored; `found`, what would be read, is overwritten."""
        difference, size = _square(found.sub_(value)), _square(value)
        if not math.isfinite(size + difference):
            raise PixartError(f"{name} is not finite in {self.storage}; a wider storage or dtype is needed")
        before = self._squares.setdefault(name, [0.0, 0.0])
        self._squares[name] = [before[0] + difference, before[1] + size]

    def _scratch(self, like: Tensor) -> Tensor:
        """Memory that is used again: fresh pages from the kernel took longer than the arithmetic."""
        if self._memory.numel() < like.numel():
            self._memory = torch.empty(like.numel())
        return self._memory[: like.numel()].view_as(like)


def together(tokens: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Captions in groups of about `_TOGETHER` values."""
    group: list[Tensor] = []
    size = 0
    for states in tokens:
        group.append(states)
        size += states.numel()
        if size >= _TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group


def _bytes(values: Tensor) -> np.ndarray:
    return values.contiguous().view(torch.uint8).numpy()


def _square(rows: Tensor) -> float:
    # Row by row, because torch sums a whole tensor in another order for each number of threads.
    return float(torch.linalg.vector_norm(rows, dim=1).double().square().sum())
