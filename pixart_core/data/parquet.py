"""Parquet files with an image a row: as {bytes, path}, as bytes, or as the path of a file."""

import bisect
import collections
import functools
import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.parquet
from pyarrow import types

from pixart_core.artifacts.manifest import image_id
from pixart_core.data.candidates import Candidate, LazyCandidates, Opened, Part, file_state, inside, key_of
from pixart_core.data.images import UnusableImageError
from pixart_core.data.side_texts import caption_and_values
from pixart_core.errors import UserError

CAPTION_COLUMNS = ("caption", "text", "prompt", "txt", "captions")
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content")
_PATH_COLUMNS = ("file_name", "image_path", "image_file", "filename", "filepath", "path", "image", "file")
_BATCH = 64  # rows read at a time: a row group may hold all of a file
_BATCHES = 8  # kept, for threads that read rows side by side


class ImageColumn(NamedTuple):
    """The column that holds the images, and how."""

    name: str
    kind: Literal["struct", "bytes", "path"]


class ParquetRows:
    """Rows of one file; quick when they are read about in order. Safe to use from threads."""

    def __init__(self, path: Path | str) -> None:
        """Open the file and choose its image column.

        Raises:
            UserError: not a parquet file, or no column that images can be had from.
        """
        self.path = str(path)
        try:
            self._file = pyarrow.parquet.ParquetFile(self.path, memory_map=True, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: {_reason(error)}") from error
        schema = self._file.schema_arrow
        self.column = _image_column(self.path, schema)
        plain = [field.name for field in schema if _is_plain(field.type) and field.name != self.column.name]
        self._columns = [self.column.name, *plain]
        metadata = self._file.metadata
        counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._group_starts = list(itertools.accumulate(counts, initial=0))
        self._batches: collections.deque[tuple[int, pyarrow.RecordBatch]] = collections.deque(maxlen=_BATCHES)
        self._ahead: Iterator[tuple[int, pyarrow.RecordBatch]] = iter(())
        self._next = -1  # the row that _ahead goes on with
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def image(self, row: int) -> bytes | str:
        """The encoded image, or the path that the row gives instead; b"" if it has neither.

        Raises:
            UserError: no such row, or the file is damaged.
        """
        batch, place = self._find(row)
        value = batch[self.column.name][place].as_py()
        if self.column.kind == "struct" and value is not None:
            value = value.get("bytes") or value.get("path")
        return value or b""

    def image_bytes(self, row: int) -> bytes:
        """The encoded image of a row; of a path, that of the file, from the folder of this one.

        Raises:
            UnusableImageError: the path leads out of that folder.
            UserError: as `image`.
            OSError: the file cannot be read.
        """
        value = self.image(row)
        if isinstance(value, bytes):
            return value
        path = inside("", value)
        if path is None:
            raise UnusableImageError("names a file outside the folder of its parquet file")
        with open(os.path.join(os.path.dirname(self.path), path), "rb") as file:
            return file.read()

    def text(self, row: int) -> tuple[str | None, dict[str, Any]]:
        """(caption, the other plain values of the row)."""
        batch, place = self._find(row)
        names = [name for name in batch.schema.names if name != self.column.name]
        return caption_and_values({name: batch[name][place].as_py() for name in names}, CAPTION_COLUMNS)

    def _find(self, row: int) -> tuple[pyarrow.RecordBatch, int]:
        if not 0 <= row < len(self):
            raise UserError(f"{self.path}: has no row {row} (it has {len(self)}); did the data change?")
        with self._lock:
            for start, batch in self._batches:
                if start <= row < start + batch.num_rows:
                    return batch, row - start
            if not self._next <= row < self._group_end(self._next):
                self._batches.clear()
                self._ahead = self._read_from(row)
            try:
                for start, batch in self._ahead:
                    self._batches.append((start, batch))
                    self._next = start + batch.num_rows
                    if row < self._next:
                        return batch, row - start
            except (pyarrow.ArrowException, OSError) as error:
                self._ahead = iter(())
                self._next = -1
                raise UserError(f"{self.path}, row {row}: damaged: {_reason(error)}") from error
        raise UserError(f"{self.path}: ends before row {row}; did the data change?")

    def _group_end(self, row: int) -> int:
        place = bisect.bisect_right(self._group_starts, row)
        return self._group_starts[place] if place < len(self._group_starts) else 0

    def _read_from(self, row: int) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """Batches from the beginning of the row group of `row` on."""
        first = bisect.bisect_right(self._group_starts, row) - 1
        for group in range(first, len(self._group_starts) - 1):
            start = self._group_starts[group]
            # One group at a time: a batch over two of them would be lost with either.
            for batch in self._file.iter_batches(_BATCH, row_groups=[group], columns=self._columns):
                yield start, batch
                start += batch.num_rows


def parquet_part(root: str, name: str) -> Part:
    """The file `name` (from `root`)."""
    path = os.path.join(root, name)
    key = key_of("parquet", name, file_state(path))
    return Part(name, key, functools.partial(_open, path, name), archive=True)


def _open(path: str, name: str) -> Opened:
    try:
        rows = ParquetRows(path)
    except UserError as error:
        return Opened((), [{"path": name, "reason": str(error).removeprefix(f"{path}: ")}])
    return Opened(LazyCandidates(range(len(rows)), functools.partial(_candidate, rows, name)))


def _candidate(rows: ParquetRows, name: str, row: int) -> Candidate:
    return Candidate(
        id=image_id(name, str(row)),
        path=name,
        member=str(row),
        name=f"{name}, row {row}",
        image=functools.partial(rows.image_bytes, row),
        text=functools.partial(rows.text, row),
    )


def holds_images(path: str) -> bool:
    """Whether a parquet file has a column of encoded images, or cannot be read and so must be told of."""
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError):
        return True
    return any(_is_image_struct(field.type) or _is_binary(field.type) for field in schema)


def count_rows(path: str) -> int:
    """Rows of a parquet file, from its end alone; 0 if it cannot be read."""
    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (pyarrow.ArrowException, OSError):
        return 0


def _image_column(path: str, schema: pyarrow.Schema) -> ImageColumn:
    """The most likely image column: by type first, then by name.

    Raises:
        UserError: there is none, or nothing tells which of several it is.
    """
    columns: Mapping[str, Any] = {field.name: field.type for field in schema}
    structs = [name for name, kind in columns.items() if _is_image_struct(kind)]
    binary = [name for name, kind in columns.items() if _is_binary(kind)]
    for kind, found in (("struct", structs), ("bytes", binary)):
        named = [name for name in _IMAGE_COLUMNS if name in found]
        if named or len(found) == 1:
            return ImageColumn((named or found)[0], kind)  # type: ignore[arg-type]
        if found:
            raise UserError(f"{path}: which column holds the images? ({', '.join(found)}); name it image")
    for name in _PATH_COLUMNS:
        if name in columns and (types.is_string(columns[name]) or types.is_large_string(columns[name])):
            return ImageColumn(name, "path")
    raise UserError(f"{path}: has no image column (columns: {', '.join(columns)})")


def _is_image_struct(kind: pyarrow.DataType) -> bool:
    return types.is_struct(kind) and any(field.name == "bytes" and _is_binary(field.type) for field in kind)


def _is_binary(kind: pyarrow.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_plain(kind: pyarrow.DataType) -> bool:
    """Whether a column is read as the sample's values: no bytes, however nested."""
    return "binary" not in str(kind)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
