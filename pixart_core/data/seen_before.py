"""Which of millions of numbers came before, in 16 bytes a number."""

import numpy as np


class SeenBefore:
    """Keys and the number of the record that each came with first."""

    def __init__(self) -> None:
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []

    def first(self, keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """For each key (uint64) the number of the record that had it before, -1 if none had; int64.

        Keys count in their order, also within one call; those that are new are remembered with their
        `numbers` (int64).
        """
        unique, places, inverse = np.unique(keys, return_index=True, return_inverse=True)
        known = np.full(len(unique), -1, np.int64)
        for level_keys, level_numbers in self._levels:
            at = np.minimum(np.searchsorted(level_keys, unique), len(level_keys) - 1)
            hit = level_keys[at] == unique
            known[hit] = level_numbers[at[hit]]
        new = known < 0
        self._add(unique[new], numbers[places[new]])
        # A new key's first record in this call came before its others.
        owner = np.where(new, numbers[places], known)[inverse]
        is_first = np.zeros(len(keys), bool)
        is_first[places[new]] = True
        return np.where(is_first, -1, owner)

    def _add(self, keys: np.ndarray, numbers: np.ndarray) -> None:
        if len(keys):
            self._levels.append((keys, numbers))
        # Levels grow twofold, so that a key is sorted anew only log(n) times.
        while len(self._levels) > 1 and len(self._levels[-2][0]) < 2 * len(self._levels[-1][0]):
            last, before = self._levels.pop(), self._levels.pop()
            keys, numbers = np.concatenate([before[0], last[0]]), np.concatenate([before[1], last[1]])
            order = np.argsort(keys, kind="stable")
            self._levels.append((keys[order], numbers[order]))
