"""Features of images on disk, by the digest of the image file and the id of what made them.

A file holds frames, each appended in one go after a batch: header (magic, rows, xxh3 of the rest), digests,
rows. What a killed run left unfinished at the end fails its hash and counts as absent, so a run loses at
most one batch. Every run appends to a file of its own: several may work at once.
"""

import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Float

from pixart_core.artifacts.image_records import digest_number
from pixart_core.errors import PixartError, UserError

_HEADER = struct.Struct("<4sIQ")  # magic, rows, xxh3 of digests and rows
_MAGIC = b"pxf1"
SUFFIX = ".features"


class FeatureCache:
    """Rows of one extractor; looked up and appended by digest."""

    def __init__(self, root: Path, extractor: str, dimensions: int) -> None:
        """Open what is there.

        Args:
            root: folder of all caches; this one is its sub-folder named after `extractor`.
            extractor: id that changes with weights, preparation and precision.

        Raises:
            UserError: the folder cannot be made or read.
        """
        self.folder = root / re.sub(r"[^A-Za-z0-9._@-]+", "-", extractor)
        self.dimensions = dimensions
        self._rows: dict[int, tuple[np.ndarray, int]] = {}
        self._own: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.folder.glob(f"*{SUFFIX}")):
                self._read(path)
        except OSError as error:
            raise UserError(f"cache {self.folder} cannot be used ({error.strerror or error})") from error

    def __contains__(self, digest: str) -> bool:
        return digest_number(digest) in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, digests: Sequence[str], rows: Float[np.ndarray, "n d"]) -> None:
        """Add the rows of images that are not there yet; they are on disk when this returns.

        Raises:
            PixartError: the disk is full, the folder cannot be written, or a feature is not finite.
        """
        if not np.isfinite(rows).all():
            raise PixartError(f"{self.folder.name} gives features that are not finite: damaged weights?")
        numbers = [digest_number(digest) for digest in digests]
        first = {number: at for at, number in reversed(list(enumerate(numbers)))}
        new = [at for number, at in first.items() if number not in self._rows]
        if not new:
            return
        keys = np.array([numbers[at] for at in sorted(new)], dtype="<u8")
        values = np.ascontiguousarray(rows[sorted(new)], dtype="<f4")
        payload = keys.tobytes() + values.tobytes()
        header = _HEADER.pack(_MAGIC, len(keys), xxhash.xxh3_64_intdigest(payload))
        try:
            if self._own is None:
                self._own = self.folder / f"{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
            with self._own.open("ab") as file:
                start = file.tell() + len(header) + keys.nbytes
                file.write(header + payload)
            # From now on read from the disk: a run over all of COCO shall not fill the memory.
            stored = np.memmap(self._own, "<f4", "r", start, (len(keys), self.dimensions))
        except OSError as error:
            raise PixartError(
                f"cannot write the feature cache {self.folder}: {error.strerror or error}"
            ) from error
        for at, key in enumerate(keys):
            self._rows[int(key)] = stored, at

    def gather(self, digests: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """The rows of `digests` as float64; all must be there."""
        result = np.empty((len(digests), self.dimensions), dtype=np.float64)
        for at, digest in enumerate(digests):
            values, row = self._rows[digest_number(digest)]
            result[at] = values[row]
        return result

    def refresh(self) -> None:
        """See what other processes have appended since."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            self._read(path)

    def _read(self, path: Path) -> None:
        if path.stat().st_size:
            data = np.memmap(path, dtype=np.uint8, mode="r")
            for keys, values in _frames(data, self.dimensions):
                for at, key in enumerate(keys):
                    self._rows.setdefault(int(key), (values, at))


def _frames(data: np.ndarray, dimensions: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(digests, rows on disk) of each whole frame; the first damaged one ends the file."""
    at = 0
    while at + _HEADER.size <= len(data):
        magic, count, expected = _HEADER.unpack(data[at : at + _HEADER.size].tobytes())
        start = at + _HEADER.size
        middle, end = start + 8 * count, start + 8 * count + 4 * count * dimensions
        if magic != _MAGIC or not count or end > len(data):
            return
        if xxhash.xxh3_64_intdigest(data[start:end].tobytes()) != expected:
            return
        yield data[start:middle].view("<u8"), data[middle:end].view("<f4").reshape(count, dimensions)
        at = end


class CachedRows:
    """The features of some images, in their order, read from the cache when asked for."""

    def __init__(self, cache: FeatureCache, digests: Sequence[str]) -> None:
        self.cache = cache
        self.digests = digests

    def __len__(self) -> int:
        return len(self.digests)

    def block(self, start: int, stop: int) -> Float[np.ndarray, "rows d"]:
        """Rows start..stop, float64."""
        return self.cache.gather(self.digests[start:stop])
