"""Which samples make up which batch: a pure function of (seed, step)."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pixart_core.seeding import derive_seed

Bucket = tuple[int, int]


class BatchOrder:
    """Single-bucket batches in which every sample comes equally often, whatever the bucket sizes.

    Each bucket is an endless stream of shuffled passes over its samples, cut into batches. Epoch e holds
    as many batches of a bucket of n samples as keep its total at floor(e n / batch size), so what does
    not fill a batch is carried into the next epoch: nothing is dropped, nothing comes twice.

    Any step can be asked for at once, so that a resumed or re-sharded run sees the same batches: the
    time does not depend on the step, only on shuffling a bucket once a pass. Processes take equal parts
    of a batch (`processes.rank_slots`), so they always work on the same bucket and as much of it.
    Threads may ask at once: what is kept is replaced whole, and at worst shuffled twice.
    """

    def __init__(self, buckets: Mapping[Bucket, int], batch_size: int, seed: int) -> None:
        self.buckets = {bucket: count for bucket, count in sorted(buckets.items()) if count}
        assert self.buckets, "no samples"
        self.batch_size = batch_size
        self.seed = seed
        self._laps: dict[Bucket, list[tuple[int, np.ndarray]]] = {}
        self._kept_epoch: tuple[int, list[tuple[Bucket, int]]] = (-1, [])

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

    def epoch(self, number: int) -> "Epoch":
        """The batches of an epoch, with a length that holds."""
        return Epoch(self, number)

    def __getitem__(self, step: int) -> tuple[Bucket, np.ndarray]:
        """Bucket and sample indices (within the bucket) of the batch of `step`."""
        epoch = self.epoch_of(step)
        bucket, number = self._epoch_batches(epoch)[step - self.batches_before(epoch)]
        return bucket, self._samples(bucket, number * self.batch_size, (number + 1) * self.batch_size)

    def _epoch_batches(self, epoch: int) -> list[tuple[Bucket, int]]:
        """(bucket, number of the batch within the bucket) of an epoch, shuffled."""
        kept, order = self._kept_epoch
        if kept != epoch:
            batches = [
                (bucket, number)
                for bucket, count in self.buckets.items()
                for number in range(epoch * count // self.batch_size, (epoch + 1) * count // self.batch_size)
            ]
            shuffled = np.random.Generator(np.random.Philox(derive_seed(self.seed, "batches", epoch)))
            order = [batches[i] for i in shuffled.permutation(len(batches))]
            self._kept_epoch = epoch, order
        return order

    def _samples(self, bucket: Bucket, start: int, stop: int) -> np.ndarray:
        """Places `start` to `stop` of the endless stream of a bucket."""
        count = self.buckets[bucket]
        parts = []
        while start < stop:
            lap, offset = divmod(start, count)
            parts.append(self._lap(bucket, lap)[offset : offset + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def _lap(self, bucket: Bucket, lap: int) -> np.ndarray:
        """The order of one pass over a bucket; the last two asked for are kept: a batch may span two."""
        kept = self._laps.get(bucket, [])
        for number, order in kept:
            if number == lap:
                return order
        seed = derive_seed(self.seed, "lap", *bucket, lap)
        order = np.random.Generator(np.random.Philox(seed)).permutation(self.buckets[bucket])
        self._laps[bucket] = [*kept[-1:], (lap, order)]
        return order


class Epoch(Sequence[tuple[Bucket, np.ndarray]]):
    """One pass over the samples: every one once, but for what does not fill a batch of its bucket.

    Attributes:
        carried_in: samples (all buckets) that the epochs before left over and that come in this one.
        carried_out: samples that this epoch leaves to the next; less than a batch for each bucket.
    """

    def __init__(self, order: BatchOrder, number: int) -> None:
        self.order = order
        self.number = number
        self.first_step = order.batches_before(number)
        self._length = order.batches_before(number + 1) - self.first_step
        counts, size = order.buckets.values(), order.batch_size
        self.carried_in = sum(number * count % size for count in counts)
        self.carried_out = sum((number + 1) * count % size for count in counts)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Bucket, np.ndarray]:  # type: ignore[override]
        if not 0 <= index < self._length:
            raise IndexError(f"batch {index} of {self._length}")
        return self.order[self.first_step + index]

    def __iter__(self) -> Iterator[tuple[Bucket, np.ndarray]]:
        return (self[index] for index in range(self._length))
