"""Captions: one JSON row an image, appended batch by batch, so that a killed run loses one batch at most.

`captions.jsonl` ({"id", "caption", "flags"}), `settings.json` (what decides a caption, written first:
other settings never continue the same file) and, when all is done, a card of kind "captions".
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pixart_core.artifacts.card import CARD, Card
from pixart_core.artifacts.publish import write_json
from pixart_core.errors import PixartError, UserError

CAPTIONS = "captions.jsonl"
SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class CaptionRow:
    """The caption of the image `id` of a manifest, and what looks wrong with it."""

    id: str
    caption: str
    flags: tuple[str, ...] = ()


def read_captions(folder: Path | str) -> dict[str, CaptionRow]:
    """The rows of a finished folder of captions, by image id.

    Raises:
        UserError: not captions, unfinished, or a damaged row (named).
    """
    Card.read(Path(folder), "captions")
    return caption_rows(Path(folder))


def stream_captions(folder: Path | str) -> Iterator[CaptionRow]:
    """The rows of a finished folder of captions, one at a time: for ten million of them.

    Raises:
        UserError: as `read_captions`.
    """
    Card.read(Path(folder), "captions")
    return (row for row, _ in _rows(Path(folder) / CAPTIONS))


def caption_rows(folder: Path) -> dict[str, CaptionRow]:
    """The same of a folder that may be unfinished."""
    return {row.id: row for row, _ in _rows(folder / CAPTIONS)}


class CaptionLog:
    """The rows of a run, open for appending; made by `open_caption_log`."""

    def __init__(self, file: BinaryIO, path: Path, done: set[str]) -> None:
        self._file = file
        self._path = path
        self.done = done
        """Ids that have their caption already."""

    def append(self, rows: Sequence[CaptionRow]) -> None:
        """Add the rows of one batch; when this returns, they survive a power cut.

        Raises:
            PixartError: the disk is full; the file ends with the batch before.
        """
        left = memoryview("".join(_line(row) for row in rows).encode())
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
        self.done.update(row.id for row in rows)


@contextlib.contextmanager
def open_caption_log(
    folder: Path, *, settings: Mapping[str, Any], schedule: Mapping[str, Any], batch_size: int,
    ids: Iterable[str],
) -> Iterator[CaptionLog]:  # fmt: skip
    """Open the captions in `folder` to add to them, and mend what a killed run left.

    A torn last row is dropped. So is a batch of which only some rows arrived, so that the batches after
    a kill hold the same images as they would have held without (padding moves a model's numbers a little).

    Args:
        settings: what decides a caption (model, prompt, ...): must be the same as before.
        schedule: what decides which images share a batch (data, limit, batch size): may change; what is
            there is kept then, and batches count from there on.
        ids: every image that is to have a caption.

    Raises:
        UserError: other settings than before, another process at work, or a damaged row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CAPTIONS
    with path.open("ab", buffering=0) as file, _locked(file, path):
        before = _read_settings(folder)
        if before is None and path.stat().st_size:
            raise UserError(f"{path} exists, but not {SETTINGS} beside it: choose another output folder")
        rows = [(row.id, end) for row, end in _rows(path, torn_last_row_is_an_error=False)]
        if before is not None and rows:  # without rows, nothing was made with the settings before
            _refuse_other_settings(folder, before["settings"], settings)
        same_schedule = before is not None and before["schedule"] == dict(schedule)
        origin = before["origin"] if before is not None and same_schedule else len(rows)
        all_done = {row_id for row_id, _ in rows}.issuperset(ids)
        if same_schedule and not all_done and len(rows) > origin:
            rows = rows[: origin + (len(rows) - origin) // batch_size * batch_size]
        file.truncate(rows[-1][1] if rows else 0)
        if not all_done:
            (folder / CARD).unlink(missing_ok=True)  # unfinished again
        write_json(
            folder / SETTINGS, {"settings": dict(settings), "schedule": dict(schedule), "origin": origin}
        )
        yield CaptionLog(file, path, {row_id for row_id, _ in rows})


def _read_settings(folder: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((folder / SETTINGS).read_text())
        assert {"settings", "schedule", "origin"} <= set(value)
    except FileNotFoundError:
        return None
    except (ValueError, AssertionError, TypeError, OSError) as error:
        raise UserError(f"{folder / SETTINGS}: cannot be read; choose another output folder") from error
    return value


def _refuse_other_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        changes = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
        raise UserError(f"{folder} holds captions made otherwise ({changes}): choose another output folder")


@contextlib.contextmanager
def _locked(file: BinaryIO, path: Path) -> Iterator[None]:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the process ends, however it ends
    except BlockingIOError as error:
        raise UserError(f"{path}: another process is writing these captions") from error
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _rows(path: Path, *, torn_last_row_is_an_error: bool = True) -> Iterator[tuple[CaptionRow, int]]:
    """(row, the file's size up to its end) of each row."""
    end = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and not torn_last_row_is_an_error:
                    return
                end += len(line)
                try:
                    row = json.loads(line)
                    yield CaptionRow(row["id"], row["caption"], tuple(row["flags"])), end
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{path}:{number}: damaged row; remove it and run again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _line(row: CaptionRow) -> str:
    return json.dumps(dataclasses.asdict(row), ensure_ascii=False, sort_keys=True) + "\n"
