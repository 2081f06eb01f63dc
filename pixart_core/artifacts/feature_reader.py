"""Reads rows of feature shards straight into the tensors of a batch (`features.py` is the way in).

Shards stay memory-mapped, and the kernel is asked for all pages of a batch before the first is touched:
reading cold then waits for the disk, not for one page fault after the other (twice as fast, see
`benchmarks/feature_store.py`), and reading warm copies nothing but the values themselves.
"""

import collections
import json
import math
import mmap
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixart_core.artifacts.feature_files import REPAIR, MappedFile, map_columns
from pixart_core.artifacts.feature_plan import PlannedShard
from pixart_core.artifacts.quantise import dequantise
from pixart_core.errors import UserError

_DTYPES = {"I8": torch.int8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_KEPT = 4  # buffers
_SMALL = 2**15  # bytes of a caption below which a copy is cheaper than a dozen calls of torch


class Shard:
    """One mapped shard and what lies where in its rows.

    Attributes:
        row, rows: (rows, bytes) of uint8, for numpy and for torch; read only.
        layout: {"name", "dtype", "start", "bytes"[, "shape"]} of each part of a row, by name.
    """

    def __init__(self, path: Path) -> None:
        self._file: MappedFile = map_columns(path)
        try:
            self.row: np.ndarray = self._file.columns["row"]
            self.offset: np.ndarray | None = self._file.columns.get("offset")
            self.layout = {part["name"]: part for part in json.loads(self._file.metadata["layout"])}
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged (its header: {error}); {REPAIR}") from error
        self.width = self.row.shape[1]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self.rows = torch.from_numpy(self.row)

    def read_ahead(self, first: int, last: int) -> None:
        """Ask for the rows from `first` on, before `last`."""
        start = self._file.starts["row"] + first * self.width
        page = start - start % mmap.PAGESIZE
        self._file.memory.madvise(mmap.MADV_WILLNEED, page, start - page + (last - first) * self.width)


Span = tuple[Shard, int, int]  # rows from the first on, before the last


class Shards:
    """Shards of one sort, seen as one long list of samples."""

    def __init__(
        self, folder: Path, shards: Sequence[PlannedShard], entries: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Raises:
        UserError: one of them is not in the index, gone, or cut short."""
        for shard in shards:
            if shard.name not in entries:
                raise UserError(f"{folder / shard.name} is not in the index of the store; {REPAIR}")
            _check_size(folder / shard.name, entries[shard.name]["bytes"])
        self._paths = [folder / shard.name for shard in shards]
        self._starts = np.array([0, *(len(shard.rows) for shard in shards)]).cumsum()
        self._opened: dict[int, Shard] = {}

    def locate(self, indices: np.ndarray) -> list[tuple[Shard, int]]:
        """(shard, number in it) of each sample."""
        numbers = np.searchsorted(self._starts, indices, "right") - 1
        places = (indices - self._starts[numbers]).tolist()
        return [(self._open(number), place) for number, place in zip(numbers.tolist(), places, strict=True)]

    def _open(self, number: int) -> Shard:
        shard = self._opened.get(number)
        if shard is None:  # two threads may both open it: one is forgotten
            shard = self._opened[number] = Shard(self._paths[number])
        return shard


class MomentReader:
    """Reads moments of the images of one bucket, in memory that it takes back when the batch is gone."""

    def __init__(self, shards: Shards, buffers: "Buffers") -> None:
        self._shards = shards
        self._buffers = buffers

    def read(
        self, indices: np.ndarray, flipped: Sequence[bool]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Mean and standard deviation of the samples; the latter is zero where the VAE has no noise."""
        places = self._shards.locate(indices)
        for shard, row in places:
            shard.read_ahead(row, row + 1)
        shape = places[0][0].layout["mean"]["shape"]
        moments = self._buffers.take(2, len(places), math.prod(shape))
        sided = [(*place, mirrored) for place, mirrored in zip(places, flipped, strict=True)]
        # Shards of one store differ in one thing: those of pictures without any noise have no std.
        still = [number for number, (shard, _) in enumerate(places) if "std" not in shard.layout]
        if 0 < len(still) < len(places):
            noisy = [number for number in range(len(places)) if number not in set(still)]
            for chosen in (still, noisy):
                part = moments.new_empty(2, len(chosen), moments.shape[2])
                moments[:, chosen] = _unpack_moments([sided[number] for number in chosen], part)
        else:
            _unpack_moments(sided, moments)
        mean, std = moments.unflatten(2, shape)
        return mean, std


def _unpack_moments(places: Sequence[tuple[Shard, int, bool]], out: Tensor) -> Tensor:
    """Mean and std (2, b, n) of rows of equal layout; of shards with mirror images from one of the halves."""
    shard = places[0][0]
    width = shard.width // 2 if "mean_flipped" in shard.layout else shard.width
    raw = np.empty((len(places), width), np.uint8)
    for number, (shard, row, mirrored) in enumerate(places):
        raw[number] = shard.row[row, width:] if mirrored else shard.row[row, :width]
    rows = torch.from_numpy(raw)
    _unpack(rows, shard.layout, "mean", out[0])
    if "std" in shard.layout:
        _unpack(rows, shard.layout, "std", out[1])
    else:
        out[1] = 0
    return out


class CaptionReader:
    """Reads token states into padded batches, in memory that it takes back when the batch is gone."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._buffers = Buffers()

    def read(self, numbers: np.ndarray) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        """Token states, zero behind each caption, and which of them are valid."""
        spans = list(_spans(self._shards.locate(numbers)))
        for shard, first, last in spans:
            shard.read_ahead(first, last)
        lengths = np.array([last - first for _, first, last in spans])
        layout, longest = spans[0][0].layout, int(lengths.max())
        text = self._buffers.take(len(spans), longest, layout["token"]["shape"][0])
        if longest * spans[0][0].width < _SMALL:
            _read_together(spans, layout, text)
        else:
            _read_one_by_one(spans, layout, text)
        mask = np.arange(text.shape[1]) < lengths[:, None]
        return text, torch.from_numpy(mask)


def _read_together(spans: Sequence[Span], layout: Mapping[str, Any], text: Tensor) -> None:
    """Gather the bytes, padded with zeros (which mean 0), and unpack them at once."""
    raw = np.zeros((*text.shape[:2], spans[0][0].width), np.uint8)
    for number, (shard, first, last) in enumerate(spans):
        raw[number, : last - first] = shard.row[first:last]
    _unpack(torch.from_numpy(raw).flatten(0, 1), layout, "token", text.flatten(0, 1))


def _read_one_by_one(spans: Sequence[Span], layout: Mapping[str, Any], text: Tensor) -> None:
    """Unpack each caption from the map into its place."""
    for number, (shard, first, last) in enumerate(spans):
        _unpack(shard.rows[first:last], layout, "token", text[number, : last - first])
        text[number, last - first :] = 0


def _spans(places: Sequence[tuple[Shard, int]]) -> Iterator[Span]:
    for shard, row in places:
        assert shard.offset is not None
        yield shard, int(shard.offset[row]), int(shard.offset[row + 1])


def _unpack(rows: Tensor, layout: Mapping[str, Any], name: str, out: Tensor | None = None) -> Tensor:
    """The values of `name` in rows (n, bytes), as float32, in `out` if it is given."""
    values = _part(rows, layout[name])
    if f"{name}_scale" in layout:
        return dequantise(values, _part(rows, layout[f"{name}_scale"]), out)
    return values.float() if out is None else out.copy_(values)


def _part(rows: Tensor, part: Mapping[str, Any]) -> Tensor:
    stored = rows[:, part["start"] : part["start"] + part["bytes"]]
    dtype = _DTYPES[part["dtype"]]
    # torch views wider values only at multiples of their size.
    if part["start"] % dtype.itemsize or rows.shape[1] % dtype.itemsize:
        stored = stored.clone(memory_format=torch.contiguous_format)
    return stored.view(dtype)


class Buffers:
    """Memory of batches that nobody holds any more, to be used again.

    A fresh block of this size comes from the kernel page by page, zeroed: for T5's states that took five
    times as long as reading them.
    """

    def __init__(self) -> None:
        # Memory, and the array that a tensor holds as long as it, or any view of it, lives.
        # deque's append and pop are atomic, so threads need no lock.
        self._lent: collections.deque[tuple[np.ndarray, weakref.ref[np.ndarray]]] = collections.deque(
            maxlen=_KEPT
        )

    def take(self, *shape: int) -> Tensor:
        """A float32 tensor with anything in it."""
        size = math.prod(shape)
        memory = None
        for _ in range(len(self._lent)):
            try:
                held, user = self._lent.popleft()
            except IndexError:
                break
            if memory is None and user() is None and size <= len(held) <= 4 * size:
                memory = held
            else:
                self._lent.append((held, user))
        if memory is None:
            memory = np.empty(size + size // 8, np.float32)
        array = memory[:size]
        self._lent.append((memory, weakref.ref(array)))
        return torch.from_numpy(array).view(shape)


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is gone; extract the features again to restore it") from error
    if found != size:
        raise UserError(f"{path} has {found} bytes instead of {size}; extract again to restore it")
