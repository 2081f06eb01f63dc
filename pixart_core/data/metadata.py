"""`metadata.{jsonl,csv,parquet}` of a folder: captions and values of its images (imagefolder's convention).

`file_name` names an image from the table's folder; `caption`, `text` or `prompt` is its caption, other
columns are its values. Rows stay in the file: in memory a row of text takes 24 bytes.
"""

import array
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from pixart_core.artifacts.manifest import image_id
from pixart_core.data.candidates import Problem, Text, inside
from pixart_core.data.images import UnusableImageError
from pixart_core.data.metadata_rows import FILE_NAME, open_rows
from pixart_core.data.side_texts import caption_and_values
from pixart_core.errors import UserError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class MetadataTable:
    """One metadata file.

    Attributes:
        name: from the data's root.
        folder: the folder it is in, from the root, "" or with a / at the end.
    """

    def __init__(self, root: str, name: str) -> None:
        """Read the names of all rows.

        Raises:
            UserError: it cannot be read, or has no column file_name.
        """
        self.name = name
        self._root = root
        self.folder = name[: -len(PurePosixPath(name).name)]
        self._problems: list[Problem] = []
        self._rows = open_rows(os.path.join(root, name))
        self._index()
        self._used = bytearray(len(self._hashes))

    def find(self, name: str) -> int | None:
        """The row of an image (named from the root), None if it has none; counts as used then."""
        wanted = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            return None
        self._used[place] = 1
        return int(self._numbers[place])

    def text(self, number: int) -> Text:
        """Caption and values of a row.

        Raises:
            UnusableImageError: the row is broken.
        """
        try:
            row = self._rows.row(number)
        except ValueError as error:
            raise UnusableImageError(f"its row in {self.name} is broken", str(error)) from error
        row.pop(FILE_NAME, None)
        return caption_and_values(row)

    def digest(self, number: int) -> bytes:
        """16 bytes that change with the row."""
        return hashlib.blake2b(self._rows.raw(number), digest_size=16).digest()

    def unused(self) -> Iterator[Problem]:
        """The rows whose image was never found, and those that name none."""
        yield from self._problems
        for place in np.flatnonzero(np.frombuffer(self._used, np.uint8) == 0):
            number = int(self._numbers[place])
            try:
                name = inside(self.folder, str(self._rows.row(number)[FILE_NAME])) or ""
            except ValueError as error:
                yield {"path": f"{self.name}, row {number + 1}", "reason": f"broken row: {error}"}
                continue
            there = os.path.exists(os.path.join(self._root, name))
            state = "is no image file that is read" if there else "is not there"
            yield {"path": name, "reason": f"named in {self.name}, but {state}"}

    def _index(self) -> None:
        hashes, numbers = array.array("Q"), array.array("Q")
        for number, (name, wrong) in enumerate(self._rows.names()):
            path = None if name is None else inside(self.folder, name)
            if name is not None and path is None:
                wrong = "names a file outside the data's folder"
            if path is None:
                reason = wrong or f"no {FILE_NAME}"
                self._problems.append({"path": f"{self.name}, row {number + 1}", "reason": reason})
            else:
                hashes.append(_hash(path))
                numbers.append(number)
        keys, rows = np.frombuffer(hashes, np.uint64), np.frombuffer(numbers, np.uint64)
        order = np.argsort(keys, kind="stable")  # of equal names the first row comes first
        keys, rows = keys[order], rows[order]
        again = np.zeros(len(keys), bool)
        again[1:] = keys[1:] == keys[:-1]
        reason = "names a file that an earlier row names"
        self._problems += [
            {"path": f"{self.name}, row {int(number) + 1}", "reason": reason}
            for number in np.sort(rows[again])
        ]
        self._hashes, self._numbers = keys[~again], rows[~again]


def metadata_in(root: str, folder: str, names: Sequence[str]) -> MetadataTable | None:
    """The table among the files `names` of `folder` (from the root), if there is one.

    Raises:
        UserError: there are several, or it cannot be read.
    """
    found = [name for name in METADATA_NAMES if name in names]
    if len(found) > 1:
        raise UserError(f"{os.path.join(root, folder)}: holds {' and '.join(found)}; keep one of them")
    return MetadataTable(root, folder + found[0]) if found else None


def _hash(name: str) -> int:
    return int(image_id(name), 16)
