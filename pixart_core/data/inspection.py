"""Looking at every candidate: threads decode, in no order; what comes out is in order and logged."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import PIL
import xxhash
from PIL import Image

from pixart_core.artifacts.card import fingerprint
from pixart_core.artifacts.image_records import content_digest
from pixart_core.data.candidates import Candidate, Part, Problem
from pixart_core.data.images import UnusableImageError, decode_image
from pixart_core.data.perceptual import look_of
from pixart_core.data.scan_log import Chunk, Inspected, Place, ScanLog
from pixart_core.errors import UserError

Fact = Literal["bytes", "pixels", "look"]
"""What is only computed when somebody asks for it."""

ALL_FACTS: frozenset[Fact] = frozenset(("bytes", "pixels", "look"))

_RULES = 2  # of `inspect_candidate`; counted up when it finds something else in the same file
_CHUNK = 256  # images of a line of the log
_TASK = 8  # images that a thread takes at a time
_WAITING = 256  # chunks that may wait for an earlier one

Wanted = Callable[[int], bool]
"""Whether more images are wanted, beside so many that are being looked at."""


def inspect_candidate(candidate: Candidate, facts: frozenset[Fact]) -> Inspected:
    """Decode every pixel of a candidate and read what came with it, or say why it cannot be used."""
    try:
        data = candidate.image()
        image = decode_image(data)
        caption, meta = candidate.text()
    except UnusableImageError as error:
        return _unusable(candidate, error.reason, error.detail)
    except UserError as error:
        return _unusable(candidate, "cannot be read", str(error))
    except OSError as error:
        return _unusable(candidate, f"cannot be read: {error.strerror or error}")
    look = look_of(image) if "look" in facts else None
    return Inspected(
        candidate.id, candidate.path, candidate.member, candidate.name, None, "",
        image.width, image.height, caption, meta, candidate.offset, candidate.length,
        hashlib.sha256(data).hexdigest() if "bytes" in facts else None,
        pixels_hash(image) if "pixels" in facts else None,
        None if look is None else look.hex(),
        content_digest(data),
    )  # fmt: skip


def pixels_hash(image: Image.Image) -> str:
    """32 hex digits over size and pixels of an RGB image."""
    digest = xxhash.xxh3_128(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _unusable(candidate: Candidate, reason: str, detail: str = "") -> Inspected:
    return Inspected(candidate.id, candidate.path, candidate.member, candidate.name, reason, detail)


def inspect_parts(
    parts: Iterator[Part],
    log: ScanLog,
    *,
    facts: frozenset[Fact] = frozenset(),
    wanted: Wanted = lambda _: True,
    threads: int | None = None,
) -> Generator[Chunk, None, None]:
    """Look at the candidates of `parts` that the log does not know; all chunks, in order.

    Which images are looked at does not depend on timing, as long as `wanted` is told by the caller's
    count of what it took and wants no more than it needs.

    Raises:
        PixartError: the disk is full, or what a part's `open` raises.
    """
    with ThreadPoolExecutor(threads or available_cores()) as pool:
        try:
            yield from _Work(pool, log, facts, threads or available_cores()).run(parts, wanted)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass
class _Slot:
    """A chunk on its way; `missing` tasks of it are with the threads."""

    key: str | None
    chunks: int
    images: int
    logged: bool
    problems: tuple[Problem, ...] = ()
    candidates: Sequence[Candidate] = ()
    found: dict[int, list[Inspected]] = dataclasses.field(default_factory=dict)
    missing: int = 0

    def chunk(self) -> Chunk:
        images = tuple(image for start in sorted(self.found) for image in self.found[start])
        return Chunk(self.key, self.chunks, self.problems, images)


def _key_of(part: str, facts: frozenset[Fact]) -> str:
    return fingerprint([part, sorted(facts), _RULES, PIL.__version__])


def _with_more(facts: frozenset[Fact]) -> list[frozenset[Fact]]:
    """`facts`, then all sets that hold more: what was looked at for them serves as well."""
    others = sorted(ALL_FACTS - facts)
    counts = range(len(others) + 1)
    return [facts | set(more) for count in counts for more in itertools.combinations(others, count)]


class _Work:
    def __init__(self, pool: ThreadPoolExecutor, log: ScanLog, facts: frozenset[Fact], threads: int) -> None:
        self._pool = pool
        self._log = log
        self._facts = facts
        self._most = max(2 * _CHUNK // _TASK, 4 * threads)  # tasks that the threads are given
        self._tasks = 0
        self._done: queue.SimpleQueue[tuple[_Slot, int, Future[list[Inspected]]]] = queue.SimpleQueue()

    def run(self, parts: Iterator[Part], wanted: Wanted) -> Iterator[Chunk]:
        coming = self._slots(parts)
        waiting: collections.deque[_Slot] = collections.deque()
        ahead = 0  # images of `waiting`
        more = True
        while True:
            while more and self._tasks < self._most and len(waiting) < _WAITING and wanted(ahead):
                slot = next(coming, None)
                if slot is None:
                    more = False
                else:
                    self._submit(slot)
                    waiting.append(slot)
                    ahead += slot.images
            if not waiting:
                return
            if waiting[0].missing:
                self._collect(*self._done.get())
                continue
            slot = waiting.popleft()
            yield self._log.read(slot.key) if slot.logged and slot.key else slot.chunk()
            ahead -= slot.images

    def _slots(self, parts: Iterator[Part]) -> Iterator[_Slot]:
        for part in parts:
            if part.key is None:
                yield _Slot(None, 1, 0, logged=False, problems=tuple(part.open().problems))
                continue
            keys = [_key_of(part.key, facts) for facts in _with_more(self._facts)]
            known = next((places for key in keys if (places := self._places(key))), None)
            if known is None:
                yield from self._opened(part, keys[0])
            else:
                for key, place in known.items():
                    yield _Slot(key, len(known), place.images, logged=True)

    def _places(self, key: str) -> dict[str, Place] | None:
        """The chunks of a part in the log; None if it does not hold all."""
        first = self._log.find(f"{key}:0")
        names = [f"{key}:{number}" for number in range(first.chunks if first else 0)]
        places = {name: place for name in names if (place := self._log.find(name)) is not None}
        return places if places and len(places) == len(names) else None

    def _opened(self, part: Part, key: str) -> Iterator[_Slot]:
        """The chunks of a part that is not wholly known."""
        candidates, problems = part.open()
        chunks = max(1, -(-len(candidates) // _CHUNK))
        for number in range(chunks):
            place = self._log.find(f"{key}:{number}")
            some = candidates[number * _CHUNK : (number + 1) * _CHUNK]
            told = tuple(problems) if number == 0 else ()
            if place is None:
                yield _Slot(f"{key}:{number}", chunks, len(some), False, told, some)
            else:
                yield _Slot(f"{key}:{number}", chunks, place.images, logged=True)

    def _submit(self, slot: _Slot) -> None:
        if slot.logged:
            return
        for start in range(0, len(slot.candidates), _TASK):
            future = self._pool.submit(self._inspect, slot.candidates[start : start + _TASK])
            slot.missing += 1
            self._tasks += 1
            future.add_done_callback(functools.partial(self._finished, slot, start))
        if not slot.missing and slot.key is not None:
            self._log.append(slot.chunk())

    def _finished(self, slot: _Slot, start: int, done: Future[list[Inspected]]) -> None:
        self._done.put((slot, start, done))

    def _inspect(self, candidates: Sequence[Candidate]) -> list[Inspected]:
        return [inspect_candidate(candidate, self._facts) for candidate in candidates]

    def _collect(self, slot: _Slot, start: int, done: Future[list[Inspected]]) -> None:
        self._tasks -= 1
        slot.found[start] = done.result()
        slot.missing -= 1
        if not slot.missing:
            slot.candidates = ()  # the files that they hold open are let go
            self._log.append(slot.chunk())
