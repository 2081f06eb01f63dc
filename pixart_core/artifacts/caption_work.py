"""The unfinished state of captions: which images share a batch, and the rows made so far.

`FOLDER/captions.parts/` holds `plan.jsonl` (the batches, fixed before the first one is made, so that
neither a kill nor another number of processes changes which images share one), `todo.json` (what this
launch has to do), and `part-R.jsonl`, to which the process of rank R alone appends: the rows of a batch and
an empty line, without which they do not count. When all is done the rows go into `captions.jsonl` in the
order of the manifest and the parts are removed.
"""

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pixart_core.artifacts.captions import (
    CAPTIONS,
    SETTINGS,
    CaptionRow,
    parse_row,
    row_line,
    rows_of,
    write_captions,
)  # fmt: skip
from pixart_core.artifacts.card import CARD
from pixart_core.artifacts.publish import staged_file, write_json
from pixart_core.errors import PixartError, UserError

PARTS = "captions.parts"
PLAN = "plan.jsonl"
TODO = "todo.json"
_LOCK = ".lock"
_END = "\n"  # after the rows of a batch
_SHIFT = 48
_PATIENCE = 5.0  # seconds that processes of a killed launch may take to end

Batches = list[list[str]]
MakePlan = Callable[[list[str]], Batches]


class CaptionWork:
    """What the first process knows of a folder of captions, which it has locked.

    Mends what a killed launch left.

    Args:
        settings: what decides a caption (model, prompt, ...): must be the same as before.

    Raises:
        UserError: other settings than before, processes of an earlier launch at work, or a damaged row.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        (folder / PARTS).mkdir(exist_ok=True)
        (folder / PARTS / TODO).unlink(missing_ok=True)  # of a launch before
        self.folder = folder
        self._base = folder / CAPTIONS
        self._files: list[Path] = [self._base, *_part_files(folder)]
        self._places: dict[str, int] = {}  # number of the file << _SHIFT | where the row begins in it
        self._failed: set[str] = set()
        for file in self._files[1:]:
            _mend(file)
        for number, file in enumerate(self._files):
            for row, start in rows_of(file):
                if not row.failed or row.id not in self._places or row.id in self._failed:
                    self._places[row.id] = number << _SHIFT | start
                    (self._failed.add if row.failed else self._failed.discard)(row.id)
        before = _read_settings(folder)
        if before is None and self._places:
            raise UserError(f"{folder} has captions but no {SETTINGS}: choose another output folder")
        if before is not None and self._places:  # without rows, nothing was made with the settings before
            _refuse_other_settings(folder, before, settings)
        if before != settings:
            write_json(folder / SETTINGS, dict(settings))

    def has_all(self, ids: Iterable[str]) -> bool:
        """Whether each of `ids` has its caption."""
        return all(row_id in self._places and row_id not in self._failed for row_id in ids)

    def plan(self, ids: Sequence[str], batch_size: int, make_plan: MakePlan) -> Batches:
        """Fix what this launch has to do, for every process to read with `read_todo`.

        Args:
            ids: all images, in order.
            batch_size: a plan for another batch size or other images is not continued: what is done stays,
                and `make_plan` groups the rest.

        Returns:
            the batches to do; those that failed before come last, one by one.
        """
        (self.folder / CARD).unlink(missing_ok=True)  # unfinished from here on
        settings = json.dumps(_read_settings(self.folder), sort_keys=True)
        schedule = {"made_for": _digest([settings, *ids]), "batch_size": batch_size}
        path = self.folder / PARTS / PLAN
        batches = _read_plan(path, schedule)
        if batches is None:
            batches = make_plan([row_id for row_id in ids if row_id not in self._places])
            with staged_file(path) as partial, partial.open("w") as file:
                file.writelines(json.dumps(line) + "\n" for line in (schedule, *batches))
        todo = [[row_id for row_id in batch if row_id not in self._places] for batch in batches]
        todo = [batch for batch in todo if batch] + [[row_id] for row_id in ids if row_id in self._failed]
        write_json(self.folder / PARTS / TODO, todo)
        return todo

    def rows(self, ids: Iterable[str]) -> Iterator[CaptionRow]:
        """The rows of `ids`, in that order, as they were written."""
        with contextlib.ExitStack() as stack:
            opened: dict[int, BinaryIO] = {}
            for row_id in ids:
                number, start = self._places[row_id] >> _SHIFT, self._places[row_id] & (1 << _SHIFT) - 1
                if number not in opened:
                    opened[number] = stack.enter_context(self._files[number].open("rb"))
                opened[number].seek(start)
                yield parse_row(opened[number].readline())

    def others(self, ids: Iterable[str]) -> list[str]:
        """Images that have a row and are not among `ids`: of data that was larger once."""
        known = set(ids)
        return [row_id for row_id in self._places if row_id not in known]

    def publish(self, rows: Iterable[CaptionRow], place_of: Callable[[str], str]) -> None:
        """Write the finished rows; see `write_captions`."""
        (self.folder / CARD).unlink(missing_ok=True)
        write_captions(self.folder, rows, place_of)

    def refresh(self) -> "CaptionWork":
        """The same after the processes have added rows."""
        return CaptionWork(self.folder, _read_settings(self.folder) or {})


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


def clear_parts(folder: Path) -> None:
    """Remove the parts, once the card is written."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def read_todo(folder: Path) -> Batches:
    """What this launch has to do; nothing where the first process found all done."""
    try:
        todo: Batches = json.loads((folder / PARTS / TODO).read_text())
    except FileNotFoundError:
        return []
    return todo


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


def _part_files(folder: Path) -> list[Path]:
    return sorted((folder / PARTS).glob("part-*.jsonl"))


def _mend(path: Path) -> None:
    """Drop what follows the last whole batch: a killed process, or a full disk, left it."""
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


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _read_plan(path: Path, schedule: Mapping[str, Any]) -> Batches | None:
    try:
        with path.open() as file:
            if json.loads(file.readline()) != schedule:
                return None
            return [json.loads(line) for line in file]
    except (OSError, ValueError):  # none yet; one is made, and what is done stays
        return None


def _read_settings(folder: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((folder / SETTINGS).read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{folder / SETTINGS}: cannot be read; choose another output folder") from error
    if not isinstance(value, dict):
        raise UserError(f"{folder / SETTINGS}: cannot be read; choose another output folder")
    return value


def _refuse_other_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        changes = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
        raise UserError(f"{folder} holds captions made otherwise ({changes}): choose another output folder")
