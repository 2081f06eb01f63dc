"""What a picture looks like in 20 bytes, and finding the pictures that look alike among millions.

The 64-bit hash is the usual one of the cosine transform: 32x32 grey pixels, the 8x8 lowest frequencies,
each above or below their median. It is blind to colour; so four mean colours must agree as well.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

_SIDE, _KEPT = 32, 8
_FLAT = 1.0  # grey levels: below, the hash of a picture is that of its noise
COLOUR_TOLERANCE = 24  # of 255 levels, of the mean colour of each quarter
_BANDS = 4  # of 16 bits each
_BRUTE = 2048  # records that are compared one by one
_PAIRS = 1 << 22  # compared at a time

Looks = np.dtype([("hash", np.uint64), ("colours", np.uint8, (12,))])


def look_of(image: Image.Image) -> bytes | None:
    """20 bytes: the hash (big-endian) and the mean RGB of the four quarters; None for a flat picture."""
    from scipy.fft import dctn  # takes long to import, and only this needs it

    small = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    grey = np.asarray(small.convert("L"), np.float64)
    if grey.std() < _FLAT:
        return None
    low = dctn(grey)[:_KEPT, :_KEPT]
    bits = np.packbits(low > np.median(low))
    return bits.tobytes() + small.resize((2, 2), Image.Resampling.BOX).tobytes()


def unpack_looks(looks: list[bytes]) -> np.ndarray:
    """What `look_of` gave, as an array of `Looks`."""
    packed = np.frombuffer(b"".join(looks), np.dtype([("hash", ">u8"), ("colours", np.uint8, (12,))]))
    return packed.astype(Looks)


class NearIndex:
    """Pictures in the order they came, to be asked which of them looks like another.

    Exact: two hashes within `distance` bits agree in one of four 16-bit bands up to distance // 4 bits,
    so only records with such a band are compared. 45 bytes a record.
    """

    def __init__(self, distance: int) -> None:
        """Args: distance: hashes that differ in at most so many of 64 bits are alike."""
        self._distance = distance
        radius = range(distance // _BANDS + 1)
        flips = [
            sum(1 << bit for bit in bits) for r in radius for bits in itertools.combinations(range(16), r)
        ]
        self._flips = np.array(flips, np.uint16)
        self._levels: list[_Level] = []

    def find(self, looks: np.ndarray) -> np.ndarray:
        """The number of the first record that is like each of `looks`, -1 if there is none; int64."""
        first = np.full(len(looks), np.iinfo(np.int64).max)
        for level in self._levels:
            for queries, records in level.near(
                np.ascontiguousarray(looks["hash"]), self._flips, self._distance
            ):
                alike = alike_colours(looks[queries], level.looks[records])
                np.minimum.at(first, queries[alike], level.numbers[records[alike]])
        return np.where(first == np.iinfo(np.int64).max, -1, first)

    def first_kept(self, looks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """As `find`, but in order and within `looks` too: one that is like none before is added.

        Which records are kept does not depend on how they are spread over calls.
        """
        first = self.find(looks)
        hashes = looks["hash"]
        near = np.tril(np.bitwise_count(hashes[:, None] ^ hashes) <= self._distance, -1)
        near &= first < 0  # one that is left out is nobody's first
        for place in np.flatnonzero(near.any(1) & (first < 0)):
            before = np.flatnonzero(near[place])
            alike = before[alike_colours(looks[place], looks[before]) & (first[before] < 0)]
            if len(alike):
                first[place] = numbers[alike[0]]
        self.add(looks[first < 0], numbers[first < 0])
        return first

    def add(self, looks: np.ndarray, numbers: np.ndarray) -> None:
        """Add records; `numbers` (int64) name them."""
        if len(looks):
            self._levels.append(_Level(looks, numbers))
        # Levels grow twofold, so that a record is sorted anew only log(n) times.
        while len(self._levels) > 1 and len(self._levels[-2].looks) < 2 * len(self._levels[-1].looks):
            last, before = self._levels.pop(), self._levels.pop()
            merged = np.concatenate([before.looks, last.looks])
            self._levels.append(_Level(merged, np.concatenate([before.numbers, last.numbers])))


def alike_colours(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether the colours of looks (n each) agree; bool."""
    return np.asarray(np.abs(one["colours"].astype(np.int16) - other["colours"]).max(-1) <= COLOUR_TOLERANCE)


@dataclasses.dataclass
class _Level:
    """Some records; many of them are sorted by each band."""

    looks: np.ndarray
    numbers: np.ndarray

    def __post_init__(self) -> None:
        self._hashes = np.ascontiguousarray(self.looks["hash"])
        self._bands: list[tuple[np.ndarray, np.ndarray]] = []
        if len(self.looks) > _BRUTE:
            for band in range(_BANDS):
                values = _band(self._hashes, band)
                order = np.argsort(values, kind="stable").astype(np.uint32)
                self._bands.append((values[order], order))

    def near(
        self, hashes: np.ndarray, flips: np.ndarray, distance: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(places in `hashes`, places of records) of the pairs within `distance`, some more than once."""
        if not self._bands:
            queries, records = np.nonzero(np.bitwise_count(hashes[:, None] ^ self._hashes) <= distance)
            yield queries, records
            return
        for band, (values, order) in enumerate(self._bands):
            wanted = (_band(hashes, band)[:, None] ^ flips).reshape(-1)
            begin = np.searchsorted(values, wanted, "left")
            counts = np.searchsorted(values, wanted, "right") - begin
            queries = np.repeat(np.arange(len(hashes)), len(flips))
            for part in _parts(counts):
                records = order[_ranges(begin[part], counts[part])]
                asking = np.repeat(queries[part], counts[part])
                near = np.bitwise_count(hashes[asking] ^ self._hashes[records]) <= distance
                yield asking[near], records[near]


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return (hashes >> np.uint64(16 * band)).astype(np.uint16)


def _parts(counts: np.ndarray) -> Iterator[slice]:
    """Slices whose counts sum to about `_PAIRS` (one count may be larger)."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, "right")))
        yield slice(start, stop)
        start = stop


def _ranges(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... counts[0] of them, then those of begin[1], and so on."""
    total = int(counts.sum())
    shifts = np.repeat(begin - (np.cumsum(counts) - counts), counts)
    return np.arange(total) + shifts
