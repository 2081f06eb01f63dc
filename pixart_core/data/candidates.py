"""What a source of images offers before any is looked at: parts, and the candidates in them.

A part (a few hundred loose files, an archive, the rows of a data set) has a key that changes when its files
change; so what was found in it once need not be looked for again.
"""

import dataclasses
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

Problem = dict[str, str]
"""{"path", "reason"} of something that is no candidate but must not vanish silently."""

Text = tuple[str | None, dict[str, Any]]
"""(caption, the sample's other plain values)"""


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """An image that may be usable.

    Attributes:
        id: of the manifest.
        path: relative to the data's root (absolute if it lies elsewhere), or `hf:ID/split`.
        member: as in `ImageRecord`.
        name: for messages and the ledger: does not change when the data are moved.
        image: reads the encoded image.
        text: reads caption and values; raises UnusableImageError for a broken side file or row.
        offset, length: as in `ImageRecord`.
    """

    id: str
    path: str
    member: str | None
    name: str
    image: Callable[[], bytes]
    text: Callable[[], Text]
    offset: int | None = None
    length: int | None = None


class Opened(NamedTuple):
    """What is in a part."""

    candidates: Sequence[Candidate]
    problems: Sequence[Problem] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the data.

    Attributes:
        name: for messages.
        key: changes whenever what `open` finds may change; None if that is known without a look.
        open: finds its candidates, in an order that depends on names alone.
        archive: whether it is one of `Size.archives`.
    """

    name: str
    key: str | None
    open: Callable[[], Opened]
    archive: bool = False


class Size(NamedTuple):
    """How much a source holds.

    Attributes:
        images: candidates; None if they could only be counted by reading all of an archive.
        archives: tar and parquet files.
    """

    images: int | None
    archives: int = 0


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        root: folder that paths are relative to.
        parts: finds them, in an order that depends on names alone.
        size: tells how much there is, without opening anything that is costly to open.
    """

    root: Path
    parts: Callable[[], Iterator[Part]]
    size: Callable[[], Size]


class LazyCandidates(Sequence[Candidate]):
    """Candidates that are made when they are asked for: rows of a large file."""

    def __init__(self, rows: Sequence[int], make: Callable[[int], Candidate]) -> None:
        self._rows = rows
        self._make = make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...

    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        if isinstance(index, slice):
            return LazyCandidates(self._rows[index], self._make)
        return self._make(self._rows[index])


def problem_part(path: str, reason: str) -> Part:
    """A part that holds nothing but a problem."""
    return Part(path, None, lambda: Opened((), ({"path": path, "reason": reason},)))


def key_of(*facts: object) -> str:
    """32 hex digits over `facts`."""
    return hashlib.blake2b(repr(facts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def file_state(path: str) -> tuple[int, int] | None:
    """(bytes, time of the last change in ns) of a file; None if it is gone."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def inside(folder: str, name: str) -> str | None:
    """`name`, as a file in `folder` writes it, from the data's root; None if it leads out of the root.

    Args:
        folder: relative to the root, "" for the root itself.
        name: relative to `folder`, with /.
    """
    path = posixpath.normpath(posixpath.join(folder, name))
    outside = posixpath.isabs(path) or path == ".." or path.startswith("../") or "\0" in path
    return None if outside else path
