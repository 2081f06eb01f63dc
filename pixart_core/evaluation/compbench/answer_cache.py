"""What a model said of an image, on disk: by the image's bytes, the model and the question.

JSON Lines of (digest, question, answer); a batch ends with the xxh3 of its lines and an empty line. A batch
that was cut off or damaged does not count: a killed run loses one. Every run appends to a file of its own,
so several may work at once.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from pixart_core.errors import PixartError, UserError

Row = tuple[str, str, Any]
"""Digest of an image file, question, answer (any JSON)."""
SUFFIX = ".answers.jsonl"


class AnswerCache:
    """The answers of one model."""

    def __init__(self, root: Path, model: str) -> None:
        """Open what is there.

        Args:
            root: folder of all caches.
            model: id that changes with weights, preparation and precision.

        Raises:
            UserError: the folder cannot be made or read.
        """
        self.folder = root / re.sub(r"[^A-Za-z0-9._@-]+", "-", model)
        self._answers: dict[tuple[str, str], Any] = {}
        self._own: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.refresh()
        except OSError as error:
            raise UserError(f"cache {self.folder} cannot be used ({error.strerror or error})") from error

    def refresh(self) -> None:
        """See what other processes have appended since."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            for digest, question, answer in _whole_rows(path.read_bytes()):
                self._answers.setdefault((digest, question), answer)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._answers

    def answer(self, digest: str, question: str) -> Any:
        """The answer, which must be there."""
        return self._answers[digest, question]

    def append(self, rows: Sequence[Row]) -> None:
        """Add the answers of a batch that are not there yet; the first answer stays.

        Raises:
            PixartError: the disk is full or the folder cannot be written.
        """
        new: dict[tuple[str, str], Any] = {}
        for digest, question, answer in rows:
            if (digest, question) not in self._answers:
                new.setdefault((digest, question), answer)
        if not new:
            return
        lines = [json.dumps([*key, answer], ensure_ascii=False) for key, answer in new.items()]
        batch = "\n".join(lines).encode()
        try:
            if self._own is None:
                self._own = self.folder / f"{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
            with self._own.open("ab") as file:
                # The empty line before it ends what a full disk may have left of the batch before.
                file.write(b"\n\n" + batch + b"\n" + _hash_of(batch) + b"\n\n")
        except OSError as error:
            raise PixartError(f"cannot write the cache {self.folder}: {error.strerror or error}") from error
        # As it will be read again: tuples are lists, floats their shortest form.
        self._answers |= {(row[0], row[1]): row[2] for row in map(json.loads, lines)}


def _hash_of(batch: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(batch).encode()


def _whole_rows(content: bytes) -> Iterator[Row]:
    """Rows of all batches that were written to their end; a damaged batch counts as absent."""
    *batches, _ = content.split(b"\n\n")
    for part in batches:
        batch, _, told = part.strip(b"\n").rpartition(b"\n")
        if batch and told == _hash_of(batch):
            yield from ((row[0], row[1], row[2]) for row in map(json.loads, batch.split(b"\n")))
