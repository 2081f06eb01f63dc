"""Captions in plain files, read row by row: .txt (a caption a line), .jsonl, .csv, .tsv and .parquet."""

import csv
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pixart_core.errors import UserError

CAPTION_NAMES = ("caption", "text", "prompt", "txt", "captions")
_PATIENCE = 1000  # rows without the column before it is called missing
_PARQUET_ROWS = 4096


class Caption(NamedTuple):
    """One caption of a source.

    Attributes:
        id: stable; of an image where there is one, else the number of the row.
        text: None or blank: there is no caption.
        problem: why the caption that there is cannot be read or shall not be used.
    """

    id: str
    text: str | None
    problem: str | None = None


def read_table(files: Sequence[Path], column: str | None = None) -> Iterator[Caption]:
    """The captions of files of one kind, whose rows are numbered through where they have no `id`.

    Args:
        column: holds the caption; default: the first of caption, text, prompt, txt and captions that
            is there. Of several captions in one cell the first counts.

    Raises:
        UserError: no such column, not UTF-8, a damaged row (file and line are named).
    """
    number = 0
    for path in files:
        if path.suffix.lower() == ".txt" and column is not None:
            raise UserError(f"{path}: a .txt file holds a caption a line and no column {column!r}")
        try:
            for row_id, text in READERS[path.suffix.lower()](path, column):
                number += 1
                yield Caption(str(number) if row_id is None else row_id, text)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


@dataclasses.dataclass
class CaptionField:
    """The caption in rows that are mappings, each with keys of its own."""

    source: str
    column: str | None
    _rows: int = 0
    _found: bool = False
    _keys: list[str] = dataclasses.field(default_factory=list)

    def of(self, row: Mapping[str, Any]) -> str | None:
        """The caption of `row`, None where it has none.

        Raises:
            UserError: it is no text, or none of the first thousand rows has the column.
        """
        self._rows += 1
        names = CAPTION_NAMES if self.column is None else (self.column,)
        name = next((name for name in names if name in row), None)
        if name is not None:
            self._found = True
            return first_text(row[name], f"{self.source}, row {self._rows}", name)
        self._keys += [key for key in row if key not in self._keys][: 20 - len(self._keys)]
        if self._rows == _PATIENCE:
            self.finish()
        return None

    def finish(self) -> None:
        """Call after the last row: none of them may have had the column."""
        if self._rows and not self._found:
            raise _no_column(self.source, self.column, self._keys)


def find_column(source: str, column: str | None, columns: Sequence[str]) -> str:
    """The caption column of a table whose columns are known.

    Raises:
        UserError: there is none.
    """
    names = CAPTION_NAMES if column is None else (column,)
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise _no_column(source, column, columns)
    return found


def _no_column(source: str, column: str | None, columns: Iterable[str]) -> UserError:
    there = ", ".join(columns) or "none"
    if column is None:
        named = ", ".join(CAPTION_NAMES)
        return UserError(f"{source}: no column is called {named} (there is: {there}); give column=NAME")
    return UserError(f"{source}: has no column {column!r} (there is: {there})")


def first_text(value: Any, place: str, column: str) -> str | None:
    """The caption in a cell: a text, or the first of several.

    Raises:
        UserError: it is neither; `place` says where.
    """
    if isinstance(value, list):
        value = value[0] if value else None
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: column {column!r} holds {type(value).__name__}, not text")
    return value


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; `\\n` alone ends a line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason})") from error


Rows = Iterator[tuple[str | None, str | None]]


def _read_txt(path: Path, column: str | None) -> Rows:
    for line in _lines(path):
        if line.strip():  # a blank line divides, it is no image without a caption
            yield None, line.strip()


def _read_jsonl(path: Path, column: str | None) -> Rows:
    field = CaptionField(str(path), column)
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        yield _id(row.get("id")), field.of(row)
    field.finish()


def _read_csv(path: Path, column: str | None) -> Rows:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(1 << 30)
    reader = csv.reader(_lines(path), delimiter=delimiter)
    try:
        header = next(reader, None)
        if header is None:
            return
        place = header.index(find_column(str(path), column, header))
        id_place = header.index("id") if "id" in header else None
        for row in reader:
            if row:
                row_id = row[id_place] if id_place is not None and id_place < len(row) else None
                yield _id(row_id), row[place] if place < len(row) else None
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _read_parquet(path: Path, column: str | None) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        name = find_column(str(path), column, columns)
        wanted = [name, *(["id"] if "id" in columns and name != "id" else [])]
        for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted):
            ids = batch.column("id").to_pylist() if "id" in wanted else itertools.repeat(None)
            for row_id, value in zip(ids, batch.column(name).to_pylist(), strict=False):
                yield _id(row_id), first_text(value, str(path), name)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({error})") from error


def _id(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None


READERS: dict[str, Callable[[Path, str | None], Rows]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
