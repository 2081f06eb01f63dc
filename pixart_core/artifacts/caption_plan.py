"""Which images are captioned together: batches of positions in the manifest, 8 bytes an image."""

import dataclasses
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from pixart_core.artifacts.publish import staged_file

Positions = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of images, none of them empty.

    Attributes:
        positions: in the manifest, batch after batch.
        ends: where each batch ends in `positions`.
    """

    positions: Positions
    ends: Positions

    @classmethod
    def of_size(cls, positions: Positions, size: int) -> Self:
        """`positions` cut into batches of `size`, the last one with what is left."""
        ends = np.arange(size, len(positions) + size, size, dtype=np.int64)
        return cls(positions, np.minimum(ends, len(positions)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> list[int]:
        start = self.ends[number - 1] if number else 0
        found: list[int] = self.positions[start : self.ends[number]].tolist()
        return found

    def without(self, done: npt.NDArray[np.bool_]) -> "Batches":
        """The same batches with only the images for which `done` (by position) is False."""
        if not len(self):
            return self
        left = ~done[self.positions]
        lengths = np.add.reduceat(left, np.concatenate([[0], self.ends[:-1]]), dtype=np.int64)
        return Batches(self.positions[left], np.cumsum(lengths[lengths > 0]))

    def then_singly(self, positions: Positions) -> "Batches":
        """These batches, and after them one for each of `positions`."""
        more = len(self.positions) + 1 + np.arange(len(positions), dtype=np.int64)
        return Batches(np.concatenate([self.positions, positions]), np.concatenate([self.ends, more]))

    def save(self, path: Path, made_for: str = "") -> None:
        """Write the batches, and what they were made for, into one file."""
        with staged_file(path) as partial, partial.open("wb") as file:
            np.savez(file, positions=self.positions, ends=self.ends, made_for=np.array(made_for))

    @classmethod
    def load(cls, path: Path, made_for: str = "") -> Self | None:
        """The batches in `path`; None if there are none, or they were made for something else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                if stored["made_for"].item() != made_for:
                    return None
                return cls(stored["positions"], stored["ends"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None


class PositionOf:
    """The position in the manifest of each id (16 hex digits), 16 bytes an image."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.keys = np.fromiter((int(row_id, 16) for row_id in ids), np.uint64)
        self._order = np.argsort(self.keys, kind="stable")
        self._sorted = self.keys[self._order]

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, row_id: str) -> int | None:
        """The position of an id, None if it is not in the manifest."""
        key = np.uint64(int(row_id, 16))
        place = int(np.searchsorted(self._sorted, key))
        if place == len(self._sorted) or self._sorted[place] != key:
            return None
        return int(self._order[place])
