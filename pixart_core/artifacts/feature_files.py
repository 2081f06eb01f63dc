"""The files of a feature store: safetensors, written and hashed in one go, read through a memory map.

Written here rather than by the safetensors package: that one builds the whole file in memory first, and
its numpy side has no way to say where in the file a row lies.
"""

import dataclasses
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pixart_core.artifacts.publish import staged_file, sync_folder
from pixart_core.errors import UserError

DTYPES: Mapping[str, Any] = {
    "U8": np.uint8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U64": np.uint64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Written:
    """Size in bytes and xxh3_128 (hex) of a file."""

    bytes: int
    xxh3_128: str


def write_columns(path: Path, columns: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Written:
    """Publish a safetensors file: written beside `path`, fsynced, renamed, and the folder fsynced.

    Wide types come first, so that every column is aligned.

    Raises:
        PixartError: the disk is full or the folder cannot be written; `path` is untouched.
    """
    ordered = sorted(columns.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, column in ordered:
        start, end = end, end + column.nbytes
        header[name] = {
            "dtype": _NAMES[column.dtype],
            "shape": list(column.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    hasher = xxhash.xxh3_128()
    with staged_file(path) as partial, partial.open("wb") as file:
        # An empty array has no memory to look at.
        arrays: list[Any] = [np.ascontiguousarray(column) for _, column in ordered if column.size]
        for part in (len(text).to_bytes(8, "little"), text, *arrays):
            hasher.update(part)
            file.write(part)
    sync_folder(path.parent)
    return Written(8 + len(text) + end, hasher.hexdigest())


@dataclasses.dataclass(frozen=True)
class MappedFile:
    """A safetensors file in memory-mapped arrays.

    Attributes:
        columns: read-only arrays, each with the byte where it starts in the file in `starts`.
        memory: the map itself, for reading ahead.
    """

    columns: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]
    starts: Mapping[str, int]
    memory: mmap.mmap


def map_columns(path: Path) -> MappedFile:
    """Map a file that `write_columns` wrote.

    Raises:
        UserError: it is gone, or its header does not describe it.
    """
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); {REPAIR}") from error
    try:
        return _parse(memory)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged (its header: {error}); {REPAIR}") from error


REPAIR = "check the store with `pixart extract-features --verify`"


def _parse(memory: mmap.mmap) -> MappedFile:
    length = int.from_bytes(memory[:8], "little")
    if length > len(memory) - 8:
        raise ValueError("longer than the file")
    header = json.loads(memory[8 : 8 + length])
    metadata = header.pop("__metadata__")
    columns, starts, end = {}, {}, 0
    for name, entry in header.items():
        dtype = np.dtype(DTYPES[entry["dtype"]])
        start, stop = entry["data_offsets"]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        if start != end or stop - start != count * dtype.itemsize or 8 + length + stop > len(memory):
            raise ValueError(f"{name} does not lie where it should")
        starts[name], end = 8 + length + start, stop
        columns[name] = np.frombuffer(memory, dtype, count, starts[name]).reshape(entry["shape"])
    if 8 + length + end != len(memory):
        raise ValueError("shorter than the file")
    return MappedFile(columns, metadata, starts, memory)
