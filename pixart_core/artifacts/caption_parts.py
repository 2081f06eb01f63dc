"""The rows of unfinished captions: a file for each process, and the locks that keep launches apart.

`FOLDER/captions.parts/part-R.jsonl`, to which the process of rank R alone appends: the rows of a batch and
an empty line, without which they do not count.
"""

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pixart_core.artifacts.captions import CaptionRow, row_line
from pixart_core.errors import PixartError, UserError

PARTS = "captions.parts"
_LOCK = ".lock"
_END = "\n"  # after the rows of a batch
_PATIENCE = 5.0  # seconds that processes of a killed launch may take to end


@contextlib.contextmanager
def locked_captions(folder: Path) -> Iterator[None]:
    """Keep every other launch out of `folder`; its first process does this.

    Raises:
        UserError: another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("ab") as lock:
        if not _try_lock(lock):
            raise UserError(f"{folder}: another process is writing these captions")
        for partial in [*folder.glob(".*.partial"), *folder.glob("manifest/.*.partial")]:
            partial.unlink(missing_ok=True)  # of a killed run
        yield


class Part:
    """The rows that one process adds; made by `open_part`."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def append(self, rows: Sequence[CaptionRow]) -> None:
        """Add the rows of one batch; when this returns, they survive a power cut.

        Raises:
            PixartError: the disk is full; the file ends with the batch before.
        """
        lines = [row_line(row) for row in rows]
        left = memoryview(("".join(lines) + _END).encode())
        size = self._file.seek(0, os.SEEK_END)
        try:
            while left:  # a disk that fills up takes a part and no error
                left = left[os.write(self._file.fileno(), left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise PixartError(
                f"cannot write {self._path}: {error.strerror}; what is captioned is kept, run again to go on"
            ) from error


@contextlib.contextmanager
def open_part(folder: Path, rank: int) -> Iterator[Part]:
    """Open the rows of this process for appending.

    Raises:
        UserError: a process of an earlier launch still writes them.
    """
    path = folder / PARTS / f"part-{rank:05d}.jsonl"
    with path.open("ab", buffering=0) as file:
        _lock_or_refuse(file, path)
        yield Part(file, path)


def part_files(folder: Path) -> list[Path]:
    """The parts in `folder`, by rank."""
    return sorted((folder / PARTS).glob("part-*.jsonl"))


def mend_part(path: Path) -> None:
    """Drop what follows the last whole batch: a killed process, or a full disk, left it.

    Raises:
        UserError: a process of an earlier launch still writes it.
    """
    with path.open("r+b") as file:
        _lock_or_refuse(file, path)
        if not (size := os.fstat(file.fileno()).st_size):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n\n") + 2
        if end < 2:
            end = 0
        if end < size:
            file.truncate(end)


def _lock_or_refuse(file: BinaryIO, path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not _try_lock(file):
        if time.monotonic() > deadline:
            raise UserError(f"{path}: a process of an earlier launch is still writing; end it first")
        time.sleep(0.1)


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the process ends, however it ends
    except BlockingIOError:
        return False
    return True
