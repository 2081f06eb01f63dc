"""Time and memory of FID and KID from cached features, without the network.

    python benchmarks/fid_memory.py --kid

Features are random numbers, so the distances mean nothing; what is measured is what 30,000 images cost.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from pixart_core.artifacts.image_records import content_digest
from pixart_core.evaluation.distances import CachedRows, gaussian_of, grouped
from pixart_core.evaluation.feature_cache import FeatureCache
from pixart_core.evaluation.frechet import frechet_with_error, group_of
from pixart_core.evaluation.kernel_distance import kernel_sums, mmd_with_error, polynomial, reference_sums

FEATURES = 2048
BATCH = 32


def fill(cache: FeatureCache, name: str, count: int) -> list[str]:
    """Put `count` rows into the cache as `evaluate` does: a batch at a time."""
    random = np.random.default_rng(len(name))
    digests = [content_digest(f"{name} {number}".encode()) for number in range(count)]
    for start in range(0, count, BATCH):
        batch = digests[start : start + BATCH]
        cache.append(batch, random.gamma(0.5, 0.8, (len(batch), FEATURES)).astype(np.float32))
    return digests


def megabytes() -> float:
    """Largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30_000)
    parser.add_argument("--reference", type=int, default=40_504)
    parser.add_argument("--kid", action="store_true", help="Also KID, over all pairs.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), "random@1", FEATURES)
        fill(cache, "samples", options.samples)
        fill(cache, "real", options.reference)
        cache = FeatureCache(Path(folder), "random@1", FEATURES)  # as a later run sees it: on disk
        samples, real = (
            [content_digest(f"{name} {number}".encode()) for number in range(count)]
            for name, count in (("samples", options.samples), ("real", options.reference))
        )
        print(f"start: {megabytes():.0f} MB")
        begin, cpu = time.monotonic(), time.process_time()
        reference = gaussian_of(cache, real)
        sample = grouped(
            CachedRows(cache, samples), group_of([str(number) for number in range(len(samples))])
        )
        print(f"moments: {time.monotonic() - begin:.0f} s, at most {megabytes():.0f} MB")
        frechet_with_error(sample, reference)
        took = f"{time.monotonic() - begin:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"
        print(f"FID with jackknife and extrapolation: {took}, at most {megabytes():.0f} MB")
        if options.kid:
            begin, cpu = time.monotonic(), time.process_time()
            rows, groups = CachedRows(cache, samples), np.arange(len(samples)) % 10
            of_reference = reference_sums(CachedRows(cache, real), polynomial)
            mmd_with_error(
                kernel_sums(rows, groups, CachedRows(cache, real), of_reference, polynomial), unbiased=True
            )
            took = f"{time.monotonic() - begin:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"
            print(f"KID: {took}, at most {megabytes():.0f} MB")


if __name__ == "__main__":
    main()
