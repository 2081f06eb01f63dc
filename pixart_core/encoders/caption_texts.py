"""Captions and images by manifest id, in a few bytes of memory each."""

import array
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixart_core.artifacts.captions import CAPTIONS, parse_row, rows_of
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.manifest import ImageRecord
from pixart_core.errors import UserError

_ID = re.compile("[0-9a-f]{16}")


class CaptionTexts:
    """The captions of a folder, read from the file when they are asked for.

    Raises:
        UserError: not captions, unfinished, or a damaged row (named).
    """

    def __init__(self, folder: Path) -> None:
        Card.read(folder, "captions")
        self._folder = folder
        ids, starts, excluded = array.array("Q"), array.array("q"), array.array("b")
        for row, start in rows_of(folder / CAPTIONS):
            if not _ID.fullmatch(row.id):
                continue  # of no manifest
            ids.append(int(row.id, 16))
            starts.append(start)
            excluded.append(row.excluded)
        self._ids = np.frombuffer(ids, np.uint64)
        self._starts = np.frombuffer(starts, np.int64)
        self._excluded = np.frombuffer(excluded, np.int8).astype(bool)
        self._lookup = IdLookup(self._ids)
        self._file = (folder / CAPTIONS).open("rb")
        self._lock = threading.Lock()

    def usable(self, ids: np.ndarray, records: Sequence[ImageRecord]) -> np.ndarray:
        """Which of the images `ids` are kept.

        Raises:
            UserError: an image has no row, or none is kept.
        """
        missing = np.flatnonzero(~np.isin(ids, self._ids))
        if len(missing):
            example = records[int(missing[0])]
            raise UserError(
                f"{self._folder} lacks the captions of {len(missing)} of {len(ids)} images, e.g. of "
                f"{example.path} ({example.id}); caption the same data"
            )
        kept = ~self._excluded[self._lookup.at(ids)]
        if not kept.any():
            raise UserError(f"{self._folder}: the captions of all {len(ids)} images are marked as excluded")
        return kept

    def text(self, name: str) -> str:
        """The caption of the image with the id `name`."""
        with self._lock:
            self._file.seek(int(self._starts[self._lookup[name]]))
            return parse_row(self._file.readline()).caption


class IdLookup:
    """Positions of manifest ids (16 hex digits each)."""

    def __init__(self, ids: np.ndarray) -> None:
        self._order = np.argsort(ids)
        self._sorted = ids[self._order]

    def at(self, ids: np.ndarray) -> np.ndarray:
        """The positions of many, all of which are there."""
        return np.asarray(self._order[np.searchsorted(self._sorted, ids)])

    def __getitem__(self, name: str) -> int:
        number = np.uint64(int(name, 16))
        place = int(np.searchsorted(self._sorted, number))
        if place == len(self._sorted) or self._sorted[place] != number:
            raise KeyError(name)
        return int(self._order[place])
