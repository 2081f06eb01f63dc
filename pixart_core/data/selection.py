"""Which of the inspected images a manifest takes, decided in order and remembered in a byte an image."""

import array
import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pixart_core.data.candidates import Problem
from pixart_core.data.gates import Gate, TokenGate, Verdict
from pixart_core.data.scan_log import Chunk, Inspected, ScanLog

_KEPT, _BROKEN, _FIRST_GATE = 0, 1, 2
_MOST_KEYS = 1000  # of the samples' JSON, for messages

Row = dict[str, str]


class Count(NamedTuple):
    """How many images a reason kept out, and one of them."""

    images: int
    example: str


class Selection:
    """Takes chunks in order until it has enough; then gives what it took, once more in order.

    Attributes:
        images: how many were kept.
        broken, filtered: reason → `Count`, of what cannot be used and of what gates left out.
        captions: how many kept images have one.
        keys: of the kept images' JSON.
        values: of `label_key` in it.
    """

    def __init__(self, gates: Sequence[Gate], limit: int | None, label_key: str | None) -> None:
        self._gates = gates
        self._limit = limit
        self._label_key = label_key
        self._codes = bytearray()  # of each image: _KEPT, _BROKEN, or _FIRST_GATE + the gate that it met
        self._verdicts = array.array("q")  # of those that met a gate
        self._chunks: list[str | tuple[Problem, ...]] = []
        self.images = self.captions = 0
        self.broken: dict[str, Count] = {}
        self.filtered: dict[str, Count] = {}
        self.keys: set[str] = set()
        self.values: set[Any] = set()

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.images == self._limit

    @property
    def unusable(self) -> int:
        """Images that cannot be used."""
        return sum(count.images for count in self.broken.values())

    @property
    def left_out(self) -> int:
        """Images that gates left out."""
        return sum(count.images for count in self.filtered.values())

    @property
    def seen(self) -> int:
        """All images that were decided upon."""
        return self.images + self.unusable + self.left_out

    def wanted(self, ahead: int) -> bool:
        """Whether more images are needed than the `ahead` that are coming."""
        return self._limit is None or self.images + ahead < self._limit

    def take(self, chunk: Chunk) -> None:
        """Decide on the images of a chunk, up to the limit."""
        self._chunks.append(chunk.problems if chunk.key is None else chunk.key)
        for problem in chunk.problems:
            _count(self.broken, problem["reason"], problem["path"])
        codes, verdicts = self._judge(chunk.images)
        for place, image in enumerate(chunk.images):
            if self.full:
                codes = codes[:place]
                break
            self._note(image, codes[place], verdicts[place])
        self._codes += codes
        for gate in self._gates:
            gate.settle(len(self._codes))

    def _judge(self, images: Sequence[Inspected]) -> tuple[bytearray, list[Verdict]]:
        codes = bytearray(_KEPT if image.reason is None else _BROKEN for image in images)
        verdicts: list[Verdict] = [None] * len(images)
        for number, gate in enumerate(self._gates):
            places = [place for place, code in enumerate(codes) if code == _KEPT]
            numbers = [len(self._codes) + place for place in places]
            found = gate.judge([images[place] for place in places], numbers)
            for place, verdict in zip(places, found, strict=True):
                if verdict is not None:
                    codes[place], verdicts[place] = _FIRST_GATE + number, verdict
        return codes, verdicts

    def _note(self, image: Inspected, code: int, verdict: Verdict) -> None:
        if code == _KEPT:
            self.images += 1
            self.captions += image.caption is not None
            if len(self.keys) < _MOST_KEYS:
                self.keys.update(image.meta)
            if self._label_key is not None:
                self.values.add(label_of(image.meta.get(self._label_key)))
        elif code == _BROKEN:
            assert image.reason is not None
            _count(self.broken, image.reason, image.name)
        else:
            assert verdict is not None
            self._verdicts.append(verdict)
            gate = self._gates[code - _FIRST_GATE]
            detail = "" if gate.names_image else f", {gate.detail(image, verdict)}"
            _count(self.filtered, gate.reason, image.name + detail)

    def keys_of_chunks(self) -> Iterator[str]:
        """Keys of what was taken, in order."""
        return (chunk for chunk in self._chunks if isinstance(chunk, str))

    def flags(self) -> Iterator[tuple[int, int]]:
        """(number, tokens) of each kept image whose caption is too long, in order."""
        for gate in self._gates:
            if isinstance(gate, TokenGate):
                pairs = zip(gate.long, gate.tokens, strict=True)
                yield from (pair for pair in pairs if self._codes[pair[0]] == _KEPT)

    def rows(self, log: ScanLog) -> Iterator[tuple[int, Inspected] | Row]:
        """In order: (number, what is known of it) of a kept image, or the ledger's row of another."""
        names = {int(number): "" for number in self._originals()}
        verdicts = iter(self._verdicts)
        number = 0
        for chunk in self._chunks:
            problems, images = (chunk, ()) if not isinstance(chunk, str) else log.read(chunk)[2:]
            yield from (dict(problem) for problem in problems)
            for image in images:
                if number == len(self._codes):
                    return  # the limit cut this chunk
                if number in names:
                    names[number] = image.name
                code = self._codes[number]
                if code == _KEPT:
                    yield number, image
                elif code == _BROKEN:
                    detail = {"detail": image.detail} if image.detail else {}
                    yield {"path": image.name, "reason": str(image.reason)} | detail
                else:
                    yield self._row(image, self._gates[code - _FIRST_GATE], next(verdicts), names)
                number += 1

    def _originals(self) -> np.ndarray:
        """Numbers of the images that others were left out for."""
        codes = np.frombuffer(self._codes, np.uint8)
        met = codes[codes >= _FIRST_GATE] - _FIRST_GATE
        naming = np.array([gate.names_image for gate in self._gates] or [False])
        return np.unique(np.frombuffer(self._verdicts, np.int64)[naming[met]])

    def _row(self, image: Inspected, gate: Gate, verdict: int, names: Mapping[int, str]) -> Row:
        detail = names[verdict] if gate.names_image else gate.detail(image, verdict)
        return {"path": image.name, "reason": gate.reason, "filter": gate.option, "detail": detail}


def describe(counts: Mapping[str, Count]) -> str:
    """The commonest reasons, each with one example, on one line."""
    common = collections.Counter({reason: count.images for reason, count in counts.items()}).most_common(3)
    parts = [f"{reason} ({images}, e.g. {_one_line(counts[reason].example)})" for reason, images in common]
    more = len(counts) - len(parts)
    return "; ".join(parts) + (f"; and {more} other reasons" if more else "")


def _one_line(name: str) -> str:
    """A file's name as it can be printed: without control characters, and in UTF-8."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)


def _count(counts: dict[str, Count], reason: str, example: str) -> None:
    before = counts.get(reason)
    counts[reason] = Count(1, example) if before is None else Count(before.images + 1, before.example)


def label_of(value: Any) -> str | None:
    """A value of the samples' JSON as the name of a class; None if it can be none."""
    return str(value) if isinstance(value, str | int) else None
