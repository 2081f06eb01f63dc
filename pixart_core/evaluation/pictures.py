"""Reading pictures once, for all benchmarks: digests, features into caches, and whoever else looks."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from PIL import Image

from pixart_core.artifacts.image_records import ImageRecord, content_digest
from pixart_core.data.images import ImageReader, UnusableImageError, decode_image
from pixart_core.errors import UserError
from pixart_core.evaluation.extractors import Extractor
from pixart_core.evaluation.feature_cache import FeatureCache
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.launch import Processes
from pixart_core.progress import Progress

Visitor = Callable[[Image.Image], None]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One of `Pictures`.

    Attributes:
        number: its place among them.
        digest: of its file.
        image: RGB.
    """

    number: int
    digest: str
    image: Image.Image


class Onlooker(Protocol):
    """Who looks at pictures, and remembers what was seen by the digest of the file."""

    def wants(self, number: int) -> bool:
        """Whether this picture concerns it."""

    def knows(self, number: int, digest: str) -> bool:
        """Whether it has seen this file before; called for each picture that it wants."""

    def see(self, pictures: Sequence[Picture], threads: Executor) -> None:
        """Look at those of a batch that it wants, some of which it may know."""

    def refresh(self) -> None:
        """Learn what other processes have seen."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Puts the features of all pictures into their cache."""

    extractor: Extractor
    cache: FeatureCache

    def wants(self, number: int) -> bool:
        return True

    def knows(self, number: int, digest: str) -> bool:
        return digest in self.cache

    def see(self, pictures: Sequence[Picture], threads: Executor) -> None:
        # All that came together, also what is known: features may depend on it in their last bit.
        prepared = np.stack(
            list(threads.map(self.extractor.prepare, [picture.image for picture in pictures]))
        )
        self.cache.append([picture.digest for picture in pictures], self.extractor.forward(prepared))

    def refresh(self) -> None:
        self.cache.refresh()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images in a fixed order.

    Attributes:
        name: for the progress bar.
        count: how many.
        read: number to the encoded image.
        decode: number and encoded image to RGB.
    """

    name: str
    count: int
    read: Callable[[int], bytes]
    decode: Callable[[int, bytes], Image.Image]


def sampled_pictures(samples: SampleSet) -> Pictures:
    """The pictures of a sample set."""
    rows = samples.samples
    return Pictures(
        samples.name,
        len(rows),
        lambda number: samples.read(rows[number]),
        lambda number, data: samples.decode(rows[number], data),
    )


def recorded_pictures(name: str, records: Sequence[ImageRecord], reader: ImageReader) -> Pictures:
    """The pictures of a manifest's records."""
    return Pictures(
        name,
        len(records),
        lambda number: reader.read_bytes(records[number]),
        lambda number, data: _decoded(records[number], data),
    )


def _decoded(record: ImageRecord, data: bytes) -> Image.Image:
    try:
        return decode_image(data)
    except UnusableImageError as error:
        place = record.path if record.member is None else f"{record.path}, {record.member}"
        raise UserError(f"reference: {place}: {error}; it was usable a moment ago") from error


def look(
    pictures: Pictures,
    onlookers: Sequence[Onlooker],
    batch_size: int,
    progress: Progress,
    processes: Processes = Processes(),
    visit: Visitor | None = None,
) -> list[str]:
    """Show each picture to all onlookers that do not know it; it is read once.

    Batches are cut by position, so that a killed run and any number of processes make the same ones.
    Onlookers see a batch one after another, in their order.

    Args:
        visit: sees every picture, in order; in the first process only.

    Returns:
        the digests, in order; of a process that is not the first: an empty list.

    Raises:
        UserError: a picture is gone or damaged.
        PixartError: out of disk; what is done is kept.
    """
    starts = range(0, pictures.count, batch_size)
    if processes.count > 1:
        with _threads() as threads:
            for start in processes.share(starts):
                _batch(pictures, start, onlookers, batch_size, threads, None)
        processes.wait()
        for onlooker in onlookers:
            onlooker.refresh()
        if not processes.first:
            return []
    digests: list[str] = []
    progress.start(pictures.name, pictures.count)
    with _threads() as threads:
        for start in starts:
            new = _batch(pictures, start, onlookers, batch_size, threads, visit)
            digests += new
            progress.advance(pictures.name, len(new))
    progress.finish(pictures.name)
    return digests


def _batch(
    pictures: Pictures,
    start: int,
    onlookers: Sequence[Onlooker],
    size: int,
    threads: Executor,
    visit: Visitor | None,
) -> list[str]:
    numbers = range(start, min(start + size, pictures.count))
    encoded = [pictures.read(number) for number in numbers]
    digests = [content_digest(data) for data in encoded]
    decoded: dict[int, Image.Image] = {}

    def shown(places: Sequence[int]) -> list[Picture]:
        new = [at for at in places if at not in decoded]
        images = threads.map(pictures.decode, [numbers[at] for at in new], [encoded[at] for at in new])
        decoded.update(zip(new, images, strict=True))
        return [Picture(numbers[at], digests[at], decoded[at]) for at in places]

    if visit is not None:
        for picture in shown(range(len(numbers))):
            visit(picture.image)
    for onlooker in onlookers:
        wanted = [at for at, number in enumerate(numbers) if onlooker.wants(number)]
        known = [onlooker.knows(numbers[at], digests[at]) for at in wanted]
        if not all(known):
            onlooker.see(shown(wanted), threads)
    return digests


@contextlib.contextmanager
def _threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        yield threads
