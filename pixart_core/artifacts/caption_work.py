"""The unfinished state of captions: which images share a batch, and the rows made so far.

`FOLDER/captions.parts/` holds `plan.npz` (the batches, fixed before the first one is made, so that neither
a kill nor another number of processes changes which images share one), `todo.npz` (what this launch has to
do) and the rows of each process (see `artifacts/caption_parts.py`). When all is done the rows go into
`captions.jsonl` in the order of the manifest and the parts are removed.
"""

import array
import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pixart_core.artifacts.caption_parts import PARTS, mend_part, part_files
from pixart_core.artifacts.caption_plan import Batches, PositionOf, Positions
from pixart_core.artifacts.captions import CAPTIONS, SETTINGS, CaptionRow, parse_row, rows_of, write_captions
from pixart_core.artifacts.card import CARD
from pixart_core.artifacts.image_records import digest_number
from pixart_core.artifacts.publish import write_json
from pixart_core.errors import UserError

PLAN = "plan.npz"
TODO = "todo.npz"
_SHIFT = 48
_NONE = -1

Order = Callable[[Positions], Positions]


class CaptionWork:
    """What the first process knows of a folder of captions, which it has locked.

    Mends what a killed launch left. Takes some 60 bytes of memory an image.

    Args:
        settings: what decides a caption (model, prompt, ...): must be the same as before.
        ids: of all images, in the order of the manifest.
        digests: of the same images (`digest_number`); read when `ids` have been.

    Attributes:
        changed: by position, whether a caption is there that was made of another picture.

    Raises:
        UserError: other settings than before, processes of an earlier launch at work, or a damaged row.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        ids: Iterable[str],
        digests: Sequence[int] | None = None,
    ) -> None:
        (folder / PARTS).mkdir(exist_ok=True)
        (folder / PARTS / TODO).unlink(missing_ok=True)  # of a launch before
        self.folder = folder
        self.position = PositionOf(ids)
        self._digests = np.asarray([] if digests is None else digests, np.uint64)
        self._settings = dict(settings)
        self._find_rows()
        before = _read_settings(folder)
        made = bool(len(self.others) or (self._places != _NONE).any())
        if before is None and made:
            raise UserError(f"{folder} has captions but no {SETTINGS}: choose another output folder")
        if before is not None and made:  # without rows, nothing was made with the settings before
            _refuse_other_settings(folder, before, settings)
        if before != settings:
            write_json(folder / SETTINGS, self._settings)

    def _find_rows(self) -> None:
        """Look through all rows: where each image's is, and whether it has a caption in it."""
        for part in part_files(self.folder):
            mend_part(part)
        self._files = [self.folder / CAPTIONS, *part_files(self.folder)]
        # Number of the file << _SHIFT | where the row begins in it.
        self._places = np.full(len(self.position), _NONE, np.int64)
        self._failed = np.zeros(len(self.position), np.bool_)
        self.changed = np.zeros(len(self.position), np.bool_)
        others = _OtherRows()
        for number, file in enumerate(self._files):
            for row, start in rows_of(file):
                place, position = number << _SHIFT | start, self.position.of(row.id)
                if position is None:
                    others.add(row, place)
                elif not row.failed or self._places[position] == _NONE or self._failed[position]:
                    self._places[position], self._failed[position] = place, row.failed
                    self.changed[position] = self._is_other(position, row)
        self.others = others.places()
        """Rows of images that are not in the manifest: of data that was larger once."""

    def _is_other(self, position: int, row: CaptionRow) -> bool:
        now = int(self._digests[position]) if len(self._digests) else 0
        return 0 not in (now, before := digest_number(row.digest)) and now != before

    @property
    def complete(self) -> bool:
        """Whether every image has its caption."""
        return not (self._failed.any() or (self._places == _NONE).any())

    def plan(self, batch_size: int, order: Order) -> Batches:
        """Fix what this launch has to do, for every process to read with `read_todo`.

        Args:
            batch_size: a plan for another batch size or other images is not continued: what is done stays.
            order: puts the positions of images without a row into the order in which batches are cut.

        Returns:
            the batches to do; those that failed before come last, one by one.
        """
        (self.folder / CARD).unlink(missing_ok=True)  # unfinished from here on
        path, made_for = self.folder / PARTS / PLAN, self._fingerprint(batch_size)
        batches = Batches.load(path, made_for)
        if batches is None:
            batches = Batches.of_size(order(np.flatnonzero(self._places == _NONE)), batch_size)
            batches.save(path, made_for)
        todo = batches.without(self._places != _NONE).then_singly(np.flatnonzero(self._failed))
        todo.save(self.folder / PARTS / TODO)
        return todo

    def rows(self) -> Iterator[CaptionRow]:
        """The rows as they were written: of the images in order, then of `others`."""
        with contextlib.ExitStack() as stack:
            opened: dict[int, BinaryIO] = {}
            for place in map(int, itertools.chain(self._places, self.others)):
                assert place != _NONE
                number, start = place >> _SHIFT, place & (1 << _SHIFT) - 1
                if number not in opened:
                    opened[number] = stack.enter_context(self._files[number].open("rb"))
                opened[number].seek(start)
                yield parse_row(opened[number].readline())

    def publish(self, rows: Iterable[CaptionRow], place_of: Callable[[str], str]) -> None:
        """Write the finished rows; see `write_captions`."""
        (self.folder / CARD).unlink(missing_ok=True)
        write_captions(self.folder, rows, place_of)

    def refresh(self) -> None:
        """Find the rows that the processes have added."""
        (self.folder / PARTS / TODO).unlink(missing_ok=True)
        self._find_rows()

    def _fingerprint(self, batch_size: int) -> str:
        made_for = json.dumps([self._settings, batch_size], sort_keys=True).encode()
        return hashlib.blake2b(made_for + self.position.keys.tobytes(), digest_size=8).hexdigest()


class _OtherRows:
    """Where rows of images lie that are not in the manifest: 17 bytes of memory a row."""

    def __init__(self) -> None:
        self._ids, self._places, self._failed = array.array("Q"), array.array("q"), array.array("b")

    def add(self, row: CaptionRow, place: int) -> None:
        self._ids.append(int(row.id, 16))
        self._places.append(place)
        self._failed.append(row.failed)

    def places(self) -> np.ndarray:
        """One for each image, in the order in which they first came: its last caption, else its failure."""
        if not self._ids:
            return np.zeros(0, np.int64)
        ids, failed = np.frombuffer(self._ids, np.uint64), np.frombuffer(self._failed, np.int8)
        _, first, image = np.unique(ids, return_index=True, return_inverse=True)
        chosen = first.copy()
        captions = np.flatnonzero(failed == 0)
        np.maximum.at(chosen, image[captions], captions)
        return np.frombuffer(self._places, np.int64)[chosen[np.argsort(first)]]


def read_todo(folder: Path) -> Batches:
    """What this launch has to do; nothing where the first process found all done."""
    nothing = np.zeros(0, np.int64)
    return Batches.load(folder / PARTS / TODO) or Batches(nothing, nothing)


def clear_parts(folder: Path) -> None:
    """Remove the parts, once the card is written."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


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
