"""Which samples make up which batch: a pure function of (seed, step)."""

from collections.abc import Mapping

import numpy as np

from pixart_core.seeding import derive_seed

Bucket = tuple[int, int]


class BatchOrder:
    """Single-bucket batches in which every sample comes equally often, whatever the bucket sizes.

    Each bucket is an endless stream of shuffled passes over its samples, cut into batches. Epoch e holds
    as many batches of a bucket of n samples as keep its total at floor(e n / batch size), so what does
    not fill a batch is carried into the next epoch: nothing is dropped, nothing comes twice.

    Any step can be asked for at once, so that a resumed or re-sharded run sees the same batches.
    """

    def __init__(self, buckets: Mapping[Bucket, int], batch_size: int, seed: int) -> None:
        self.buckets = {bucket: count for bucket, count in sorted(buckets.items()) if count}
        assert self.buckets, "no samples"
        self.batch_size = batch_size
        self.seed = seed
        self._laps: dict[Bucket, dict[int, np.ndarray]] = {}
        self._cached_epoch: int | None = None
        self._cached_batches: list[tuple[Bucket, int]] = []

    def batches_before(self, epoch: int) -> int:
        """Number of batches in the epochs before `epoch`."""
        return sum(epoch * count // self.batch_size for count in self.buckets.values())

    def epoch_of(self, step: int) -> int:
        """The epoch that `step` (counted from 0) belongs to."""
        samples = sum(self.buckets.values())
        low, high = 0, (step + len(self.buckets) + 1) * self.batch_size // samples + 1
        while low < high:  # the last epoch that starts at or before `step`
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.batches_before(middle) <= step else (low, middle - 1)
        return low

    def __getitem__(self, step: int) -> tuple[Bucket, np.ndarray]:
        """Bucket and sample indices (within the bucket) of the batch of `step`."""
        epoch = self.epoch_of(step)
        bucket, number = self._epoch_batches(epoch)[step - self.batches_before(epoch)]
        start = number * self.batch_size
        return bucket, np.array(
            [self._sample(bucket, place) for place in range(start, start + self.batch_size)]
        )

    def _epoch_batches(self, epoch: int) -> list[tuple[Bucket, int]]:
        """(bucket, number of the batch within the bucket) of an epoch, shuffled."""
        if self._cached_epoch != epoch:
            batches = [
                (bucket, number)
                for bucket, count in self.buckets.items()
                for number in range(epoch * count // self.batch_size, (epoch + 1) * count // self.batch_size)
            ]
            shuffled = np.random.Generator(np.random.Philox(derive_seed(self.seed, "batches", epoch)))
            self._cached_batches = [batches[i] for i in shuffled.permutation(len(batches))]
            self._cached_epoch = epoch
        return self._cached_batches

    def _sample(self, bucket: Bucket, place: int) -> int:
        lap, offset = divmod(place, self.buckets[bucket])
        return int(self._lap(bucket, lap)[offset])

    def _lap(self, bucket: Bucket, lap: int) -> np.ndarray:
        """The order of one pass over a bucket; the last two are kept, since a batch may span two."""
        kept = self._laps.setdefault(bucket, {})
        if lap not in kept:
            seed = derive_seed(self.seed, "lap", *bucket, lap)
            kept[lap] = np.random.Generator(np.random.Philox(seed)).permutation(self.buckets[bucket])
            for old in sorted(kept)[:-2]:
                del kept[old]
        return kept[lap]
