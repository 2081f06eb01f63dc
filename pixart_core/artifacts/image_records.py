"""One image of a manifest, and a manifest's lines as a sequence that takes 8 bytes of memory a record."""

import dataclasses
import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import xxhash

from pixart_core.errors import UserError

_BLOCK = 1 << 26
# Keys are sorted, so that the split stands here; in a caption its quotes would be escaped.
_SPLIT_AT_END = re.compile(rb'"split": "([a-z]+)", "width": \d+\}\n?$')


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image and what is known about it.

    Attributes:
        id: 16 hex digits, stable: see `image_id`. Never a file stem.
        path: file, or archive (tar, parquet); relative to the manifest's folder if inside it, else absolute;
            `hf:ID/split` for a hub data set.
        member: name inside the tar archive, row number of a parquet file or hub data set, None for a plain
            file.
        width: pixels, after EXIF rotation.
        height: pixels, after EXIF rotation.
        caption: the caption that came with the image.
        label: class index of stage 1, into `Manifest.label_names`.
        split: "train" or "heldout".
        meta: the sample's JSON, or the exact ground truth of a generated picture.
        offset, length: where the member's bytes lie in a tar archive, if known: spares reading its headers.
        digest: `content_digest` of the encoded image, None where nobody looked: names and sizes stay when
            a picture is replaced by another.
    """

    id: str
    path: str
    member: str | None
    width: int
    height: int
    caption: str | None
    label: int | None
    split: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    offset: int | None = None
    length: int | None = None
    digest: str | None = None

    def as_row(self) -> dict[str, Any]:
        """The fields as JSON values; unknown places in archives and digests are left out."""
        row = {name: getattr(self, name) for name in _FIELDS}
        if self.offset is None:
            del row["offset"], row["length"]
        if self.digest is None:
            del row["digest"]
        return row


_FIELDS = tuple(field.name for field in dataclasses.fields(ImageRecord))


def content_digest(data: bytes) -> str:
    """16 hex digits (XXH3, 64 bits) by which the bytes of an encoded image are known."""
    return xxhash.xxh3_64_hexdigest(data)


def digest_number(digest: str | None) -> int:
    """A digest for arrays of uint64; 0 for an unknown one.

    Raises:
        ValueError, TypeError: it is none.
    """
    if digest is None:
        return 0
    if len(digest) != 16:
        raise ValueError(f"{digest!r} is no digest")
    return int(digest, 16)


def json_line(row: Mapping[str, Any]) -> str:
    """`row` as one line of JSON with sorted keys."""
    line = json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8 arrives as lone surrogates; escaped, it survives the round trip.
        line = json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n"
    return line


class StoredRecords(Sequence[ImageRecord]):
    """The records of a `manifest.jsonl`, or some of them; each is parsed when it is asked for.

    Slices are views. A list of all would take a hundred times the memory: iterate instead.
    """

    def __init__(
        self,
        path: Path,
        data: mmap.mmap | bytes,
        ends: np.ndarray,
        numbers: np.ndarray | range,
        change: Callable[[ImageRecord], ImageRecord] | None = None,
    ) -> None:
        """Made by `open`; `numbers` are lines (from 0), `ends[number]` is where one ends."""
        self._path = path
        self._data = data
        self._ends = ends
        self._numbers = numbers
        self._change = change

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the file and find its lines.

        Raises:
            UserError: it cannot be read, or its last line is cut off.
        """
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); make the manifest again") from error
        if size and data[-1:] != b"\n":
            raise UserError(f"{path}: cannot be read (its last line is cut off); make the manifest again")
        found = [np.zeros(0, np.int64)]
        for start in range(0, size, _BLOCK):
            block = np.frombuffer(data[start : start + _BLOCK], np.uint8)
            found.append(np.flatnonzero(block == ord("\n")) + (start + 1))
        ends = np.concatenate(found)
        return cls(path, data, ends, range(len(ends)))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        if isinstance(index, slice):
            return type(self)(self._path, self._data, self._ends, self._numbers[index], self._change)
        return self._record(int(self._numbers[index]))

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self._record(int(number)) for number in self._numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def changed(self, change: Callable[[ImageRecord], ImageRecord]) -> "StoredRecords":
        """The same records as `change` makes them when they are asked for."""
        return StoredRecords(self._path, self._data, self._ends, self._numbers, change)

    def of_split(self, name: str) -> "StoredRecords":
        """Those of split "train" or "heldout", in order; lines are not parsed for it."""
        chosen = (number for number in self._numbers if self._split(int(number)) == name)
        numbers = np.fromiter(chosen, np.int64)
        return StoredRecords(self._path, self._data, self._ends, numbers, self._change)

    def _line(self, number: int) -> bytes:
        start = int(self._ends[number - 1]) if number else 0
        return self._data[start : int(self._ends[number])]

    def _split(self, number: int) -> str:
        found = _SPLIT_AT_END.search(self._line(number))
        return found.group(1).decode() if found else self._record(number).split

    def _record(self, number: int) -> ImageRecord:
        try:
            record = ImageRecord(**json.loads(self._line(number).decode()))
            digest_number(record.digest)
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._path}:{number + 1}: not an image record ({error})") from error
        return record if self._change is None else self._change(record)
