"""Reading pictures once, for all benchmarks: digests, features into caches, and whoever else looks."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

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

Work = tuple[Extractor, FeatureCache]
Visitor = Callable[[Image.Image], None]


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
    works: Sequence[Work],
    batch_size: int,
    progress: Progress,
    processes: Processes = Processes(),
    visit: Visitor | None = None,
) -> list[str]:
    """Put the features that are missing into the caches; `visit` sees every picture, in order.

    Batches are cut by position, so that a killed run and any number of processes make the same ones.

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
                _batch(pictures, start, works, batch_size, threads, None)
        processes.wait()
        for _, cache in works:
            cache.refresh()
        if not processes.first:
            return []
    digests: list[str] = []
    progress.start(pictures.name, pictures.count)
    with _threads() as threads:
        for start in starts:
            new = _batch(pictures, start, works, batch_size, threads, visit)
            digests += new
            progress.advance(pictures.name, len(new))
    progress.finish(pictures.name)
    return digests


def _batch(
    pictures: Pictures,
    start: int,
    works: Sequence[Work],
    size: int,
    threads: Executor,
    visit: Visitor | None,
) -> list[str]:
    numbers = range(start, min(start + size, pictures.count))
    encoded = [pictures.read(number) for number in numbers]
    digests = [content_digest(data) for data in encoded]
    lacking = [
        (extractor, cache) for extractor, cache in works if not all(digest in cache for digest in digests)
    ]
    if lacking or visit is not None:
        images = list(threads.map(pictures.decode, numbers, encoded))
        for image in images:
            if visit is not None:
                visit(image)
        for extractor, cache in lacking:
            # The whole batch, also if some are known: features may depend on it in their last bit.
            prepared = np.stack(list(threads.map(extractor.prepare, images)))
            cache.append(digests, extractor.forward(prepared))
    return digests


@contextlib.contextmanager
def _threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        yield threads
