"""What a scan found, chunk by chunk, appended as it comes: a killed scan goes on, a later one looks at what
is new alone.

`inspected.jsonl` in the manifest's folder: a line holds some hundred images in order, under the key of the
part that they are in. A line counts once it is whole.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from pixart_core.artifacts.publish import staged_file
from pixart_core.data.candidates import Problem
from pixart_core.errors import PixartError, UserError

INSPECTED = "inspected.jsonl"
_HEAD = re.compile(rb'\{"key": "([0-9a-f]+:\d+)", "chunks": (\d+), "images": (\d+), ')


@dataclasses.dataclass(frozen=True, slots=True)
class Inspected:
    """What is known of one candidate.

    Attributes:
        id, path, member, name, offset, length: of the candidate.
        reason, detail: why it cannot be used; without a reason it can, and the others are known.
        width, height: pixels, upright.
        caption, meta: what came with it.
        bytes_hash: SHA-256 of the file, hex.
        pixels_hash: of size and decoded pixels, hex.
        look: `perceptual.look_of`, hex; None for a flat picture too.
        digest: `content_digest` of the file.
    """

    id: str
    path: str
    member: str | None
    name: str
    reason: str | None = None
    detail: str = ""
    width: int = 0
    height: int = 0
    caption: str | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    offset: int | None = None
    length: int | None = None
    bytes_hash: str | None = None
    pixels_hash: str | None = None
    look: str | None = None
    digest: str | None = None


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Inspected)} | {"meta": {}}


class Chunk(NamedTuple):
    """Some images of a part, in order.

    Attributes:
        key: that of the part, a colon and the chunk's number in it; None for what is not logged.
        chunks: how many the part has.
        problems: of the part; the first chunk has them.
    """

    key: str | None
    chunks: int
    problems: tuple[Problem, ...]
    images: tuple[Inspected, ...]


class Place(NamedTuple):
    """Where a chunk is in the log, and how many chunks its part and images it has."""

    offset: int
    length: int
    chunks: int
    images: int


class ScanLog:
    """The chunks that are known; made by `open_scan_log`. Not to be used from several threads."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._places = dict(_whole_lines(file))
        self._end = max((place.offset + place.length for place in self._places.values()), default=0)
        file.truncate(self._end)  # what a killed run left behind its last whole line

    def find(self, key: str) -> Place | None:
        """Where a chunk is, None if it is not known."""
        return self._places.get(key)

    def keys(self) -> Iterable[str]:
        """Of all chunks that are known."""
        return self._places.keys()

    def read(self, key: str) -> Chunk:
        """A chunk that `find` knows."""
        row = json.loads(self._line(key))
        images = tuple(Inspected(**values) for values in row["rows"])
        return Chunk(key, row["chunks"], tuple(row["problems"]), images)

    def append(self, chunk: Chunk) -> None:
        """Add a chunk; when this returns, it survives a power cut.

        Raises:
            PixartError: the disk is full; the log ends with the chunk before.
        """
        assert chunk.key is not None
        line = _line_of(chunk)
        left = memoryview(line)
        try:
            self._file.seek(self._end)
            while left:  # a disk that fills up takes a part and no error
                left = left[os.write(self._file.fileno(), left) :]
            os.fdatasync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise PixartError(
                f"cannot write {self._name}: {error.strerror}; what is scanned is kept, run again to go on"
            ) from error
        self._places[chunk.key] = Place(self._end, len(line), chunk.chunks, len(chunk.images))
        self._end += len(line)

    def publish(self, path: Path, keys: Iterable[str]) -> None:
        """Write the chunks `keys` alone, in this order, as `path`: no trace of kills, threads, older data."""
        with staged_file(path) as partial, partial.open("wb") as file:
            for key in keys:
                file.write(self._line(key))

    def _line(self, key: str) -> bytes:
        place = self._places[key]
        return os.pread(self._file.fileno(), place.length, place.offset)


@contextlib.contextmanager
def open_scan_log(folder: Path | None) -> Iterator[ScanLog]:
    """The log in `folder`, held for this process alone; without a folder one that is forgotten.

    Raises:
        UserError: another process scans into `folder`.
        PixartError: it cannot be written.
    """
    if folder is None:
        with tempfile.TemporaryFile() as file:
            yield ScanLog(file, "a temporary file")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise PixartError(f"cannot write {folder}: {error.strerror}") from error
    try:
        if _lock(lock, folder):
            for partial in folder.glob(".*.partial"):  # of a killed scan
                partial.unlink(missing_ok=True)
        try:
            log = (folder / INSPECTED).open("ab+", buffering=0)
        except OSError as error:
            raise PixartError(f"cannot write {folder / INSPECTED}: {error.strerror}") from error
        with log:
            try:
                yield ScanLog(log, str(folder / INSPECTED))
            except BaseException:
                if log.seek(0, os.SEEK_END) == 0:  # a mistake in what was asked leaves nothing behind
                    with contextlib.suppress(OSError):
                        (folder / INSPECTED).unlink()
                        folder.rmdir()
                raise
    finally:
        os.close(lock)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        # Let go when the process ends, however it ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{folder}: another process is scanning into it") from error
    except OSError:
        return (
            False  # some network file systems lock no folders; two scans there cost time, the last one wins
        )
    return True


def _line_of(chunk: Chunk) -> bytes:
    head = {"key": chunk.key, "chunks": chunk.chunks, "images": len(chunk.images)}
    row = head | {"problems": chunk.problems, "rows": [_row(image) for image in chunk.images]}
    # ASCII: a file name that is not UTF-8 comes as lone surrogates, which UTF-8 cannot hold.
    return json.dumps(row).encode("ascii") + b"\n"


def _row(image: Inspected) -> dict[str, Any]:
    values = {name: getattr(image, name) for name in _DEFAULTS}
    return {name: value for name, value in values.items() if value != _DEFAULTS[name]}


def _whole_lines(file: IO[bytes]) -> Iterator[tuple[str, Place]]:
    """Key and place of each line up to the first that is not whole."""
    offset = 0
    file.seek(0)
    with os.fdopen(os.dup(file.fileno()), "rb") as lines:
        last: tuple[str, Place] | None = None
        for line in lines:
            head = _HEAD.match(line)
            if head is None or not line.endswith(b"\n"):
                break
            if last is not None:
                yield last
            key, chunks, images = head.groups()
            last = key.decode(), Place(offset, len(line), int(chunks), int(images))
            offset += len(line)
        if last is not None and _parses(os.pread(file.fileno(), last[1].length, last[1].offset)):
            yield last


def _parses(line: bytes) -> bool:
    """After a power cut the last line may have its length and not its content."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
