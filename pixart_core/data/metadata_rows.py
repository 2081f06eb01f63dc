"""The rows of a metadata file, by number, without holding their text in memory."""

import array
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from pixart_core.errors import UserError

FILE_NAME = "file_name"


class Rows(Protocol):
    """The rows of a file."""

    def names(self) -> Iterator[tuple[str | None, str | None]]:
        """(file name, None) of each row, or (None, what is wrong with it). To be read once, first."""

    def row(self, number: int) -> dict[str, Any]:
        """The values of a row. ValueError: it is broken."""

    def raw(self, number: int) -> bytes:
        """What the row looks like in the file."""


def open_rows(path: str) -> Rows:
    """Open a .jsonl, .csv or .parquet file.

    Raises:
        UserError: it cannot be read, or (now or while its names are read) has no column file_name.
    """
    try:
        if path.endswith(".parquet"):
            return _ParquetRows(path)
        return (_JsonRows if path.endswith(".jsonl") else _CsvRows)(open(path, "rb"), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


class _LineRows:
    """Rows of a text file: where each begins is kept, its text is read again when asked for."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._starts = array.array("Q", [0])

    def raw(self, number: int) -> bytes:
        start, end = self._starts[number], self._starts[number + 1]
        return os.pread(self._file.fileno(), end - start, start)

    def _text(self, number: int) -> str:
        try:
            return self.raw(number).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError("not UTF-8") from error


class _JsonRows(_LineRows):
    def names(self) -> Iterator[tuple[str | None, str | None]]:
        number, position = 0, 0
        for line in self._file:
            position += len(line)
            if not line.strip():
                self._starts[-1] = position  # an empty line is no row
                continue
            self._starts.append(position)
            try:
                name = self.row(number).get(FILE_NAME)
                yield (name, None) if isinstance(name, str) else (None, f"no {FILE_NAME}")
            except ValueError as error:
                yield None, f"broken row: {error}"
            number += 1

    def row(self, number: int) -> dict[str, Any]:
        try:
            value = json.loads(self._text(number))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError("not JSON") from error
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return value


class _CsvRows(_LineRows):
    _columns: Sequence[str] = ()

    def names(self) -> Iterator[tuple[str | None, str | None]]:
        lines = _CountedLines(self._file)
        reader = csv.reader(lines, strict=True)
        header = True
        while True:
            first, broken, record = lines.number + 1, False, None
            try:
                record = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                if "unexpected end" in str(error) or "field larger" in str(error):
                    raise UserError(
                        f"{self._path}: a quote in line {first} is not closed, or a field is longer than "
                        f"{csv.field_size_limit()} characters"
                    ) from error
                broken = True
            if header:
                self._read_header(record or [])
                header, self._starts[-1] = False, lines.position
            elif record or broken:
                self._starts.append(lines.position)
                yield self._name(len(self._starts) - 2)
            else:
                self._starts[-1] = lines.position  # an empty line is no row
        if header:
            self._read_header([])

    def row(self, number: int) -> dict[str, Any]:
        try:
            record = next(csv.reader([self._text(number)], strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if len(record) != len(self._columns):
            raise ValueError(f"{len(record)} fields where the header has {len(self._columns)}")
        return {name: value for name, value in zip(self._columns, record, strict=True) if value != ""}

    def _read_header(self, record: Sequence[str]) -> None:
        self._columns = [name.removeprefix("\ufeff").strip() for name in record]
        _require_file_name(self._path, self._columns)
        repeated = next((name for name in self._columns if self._columns.count(name) > 1), None)
        if repeated is not None:
            raise UserError(f"{self._path}: has two columns {repeated!r}; rename one of them")

    def _name(self, number: int) -> tuple[str | None, str | None]:
        """Of a broken row too, where it can be told: its image must not pass as one without a row."""
        text = self.raw(number).decode("utf-8-sig", "surrogateescape")
        try:
            record = next(csv.reader([text]))
        except (csv.Error, StopIteration) as error:
            return None, f"broken row: {error}"
        place = self._columns.index(FILE_NAME)
        name = record[place] if place < len(record) else ""
        return (name, None) if name else (None, f"no {FILE_NAME}")


class _CountedLines(Iterator[str]):
    """The lines of a file as text, and how far they go: `position` in bytes, `number` of lines."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = self.number = 0

    def __next__(self) -> str:
        line = next(self._file)
        self.position += len(line)
        self.number += 1
        return line.decode("utf-8", "surrogateescape")


class _ParquetRows:
    """All columns but nested binary ones, in memory as Arrow holds them."""

    def __init__(self, path: str) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path, partitioning=None)
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: not a parquet file that can be read ({reason})") from error
        _require_file_name(path, table.column_names)
        self._columns: Mapping[str, Any] = dict(zip(table.column_names, table.columns, strict=True))
        self._length = table.num_rows

    def names(self) -> Iterator[tuple[str | None, str | None]]:
        for value in self._columns[FILE_NAME]:
            name = value.as_py()
            yield (name, None) if isinstance(name, str) else (None, f"no {FILE_NAME}")

    def row(self, number: int) -> dict[str, Any]:
        return {name: column[number].as_py() for name, column in self._columns.items()}

    def raw(self, number: int) -> bytes:
        return repr(self.row(number)).encode("utf-8", "backslashreplace")


def _require_file_name(path: str, columns: Sequence[str]) -> None:
    if FILE_NAME not in columns:
        listed = ", ".join(columns) or "none"
        raise UserError(
            f"{path}: has no column {FILE_NAME} (columns: {listed[:200]}); rename the column, or "
            "the file if it is not about the images here"
        )
