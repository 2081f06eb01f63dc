"""`index.jsonl` of a feature store: which files are published, with their sizes and hashes.

First {"format": 2, "plan": fingerprint of the settings}, then one line a file, appended when it is in
place. Every line carries a hash of itself in "line": one that is cut short or damaged counts as not
written, and its file is made again.
"""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from pixart_core.artifacts.publish import sync_folder, write_bytes
from pixart_core.errors import PixartError, UserError

INDEX = "index.jsonl"
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Index:
    """What `index.jsonl` says.

    Attributes:
        plan: fingerprint of the settings; None when there is no (readable) first line.
        entries: by name of the file.
        damaged: numbers (from 1) of the lines that count as not written.
    """

    plan: str | None = None
    entries: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    damaged: tuple[int, ...] = ()


def read_index(folder: Path) -> Index:
    """Read the index of `folder`; an empty one when there is none.

    Raises:
        UserError: it cannot be read, or is of another format.
    """
    path = folder / INDEX
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Index()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    rows = {number: _parse(line) for number, line in enumerate(lines[:-1], 1)}
    if lines[-1]:
        rows[len(lines)] = None  # cut short
    _refuse_other_formats(path, lines[0])
    header = rows.get(1)
    return Index(
        None if header is None or "plan" not in header else str(header["plan"]),
        {row["name"]: row for row in rows.values() if row is not None and "name" in row},
        tuple(number for number, row in rows.items() if row is None),
    )


def _refuse_other_formats(path: Path, first: bytes) -> None:
    try:
        row = json.loads(first)
        found = int(row["format"])
    except (ValueError, KeyError, TypeError):
        return
    if found < FORMAT and "line" not in row:  # lines had no hash then; with one it is a damaged line
        raise UserError(
            f"{path.parent} was made by an earlier pixart (feature store of format {found}, now {FORMAT}); "
            "extract the features again, into another folder or after deleting this one"
        )
    if found > FORMAT and _parse(first) is not None:
        raise UserError(f"{path.parent} was made by a newer pixart (format {found}); upgrade to read it")


def write_index(folder: Path, plan: str, entries: Iterable[Mapping[str, Any]]) -> None:
    """Replace the index, atomically; it is there when this returns, even after a power cut."""
    header = {"format": FORMAT, "plan": plan}
    write_bytes(folder / INDEX, b"".join(_line(row) for row in (header, *entries)))
    sync_folder(folder)


def append_entry(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add the line of a file that is in place; processes of one launch may do so at once.

    Raises:
        PixartError: the disk is full; the index is as it was.
    """
    path = folder / INDEX
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            line = _line(entry)
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # a killed process left half a line
            written = os.write(handle, line)
            if written < len(line):
                os.ftruncate(handle, size)
                raise PixartError(f"cannot write {path}: the disk is full")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise PixartError(f"cannot write {path}: {error.strerror or error}") from error


def _line(row: Mapping[str, Any]) -> bytes:
    plain = {key: value for key, value in row.items() if key != "line"}
    return json.dumps(plain | {"line": _digest(plain)}, sort_keys=True).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """The row, unless the line is not exactly what `_line` wrote."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and _line(row) == line + b"\n" else None


def _digest(row: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64(json.dumps(row, sort_keys=True).encode()).hexdigest()
