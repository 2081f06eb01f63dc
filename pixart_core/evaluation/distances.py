"""Distances of sample sets to real images: Fréchet, FID, KID, CMMD and FD-DINOv2, each with its error."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixart_core.evaluation.extractors import Extractor
from pixart_core.evaluation.feature_cache import CachedRows, FeatureCache
from pixart_core.evaluation.frechet import (
    GROUPS,
    Distance,
    Gaussian,
    GroupedMoments,
    GroupedRows,
    Moments,
    Sample,
    frechet_distance,
    frechet_with_error,
    group_of,
    jackknife_se,
    merge,
)
from pixart_core.evaluation.kernel_distance import (
    CMMD_SCALE,
    Kernel,
    kernel_sums,
    mmd_with_error,
    polynomial,
    rbf,
    reference_sums,
)

BLOCK = 1024  # rows of features in memory at once
DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Compared:
    """A sample set as distances see it.

    Attributes:
        digests, prompts: of each sample, in order.
        real: digests of as many real images of other captions, where there are some.
    """

    name: str
    digests: Sequence[str]
    prompts: Sequence[str]
    real: Sequence[str] = ()


def frechet_results(
    sets: Iterable[Compared], extractor: Extractor, cache: FeatureCache, reference: Gaussian
) -> tuple[dict[str, dict[str, Any]], dict[str, Distance]]:
    """Fréchet distance of each set to `reference`: (what the report says, what pairs are made of)."""
    results, distances = {}, {}
    for samples in sets:
        sample = grouped(CachedRows(cache, samples.digests), group_of(samples.prompts))
        distance = frechet_with_error(sample, reference)
        results[samples.name] = _told(distance, extractor, reference.count)
        if samples.real:
            real = gaussian_of(cache, samples.real)
            results[samples.name]["real_images"] = round(frechet_distance(real, reference), DIGITS)
        distances[samples.name] = distance
    return results, distances


def kernel_results(
    sets: Iterable[Compared], extractor: Extractor, cache: FeatureCache, reference: Sequence[str], kind: str
) -> tuple[dict[str, dict[str, Any]], dict[str, Distance]]:
    """KID (`kind` "kid": unbiased) or CMMD ("cmmd": over all pairs, x 1000) of each set."""
    kernel: Kernel = polynomial if kind == "kid" else rbf
    unbiased, scale = kind == "kid", 1.0 if kind == "kid" else CMMD_SCALE
    real = CachedRows(cache, reference)
    of_reference = reference_sums(real, kernel)
    results, distances = {}, {}

    def distance_of(digests: Sequence[str], groups: np.ndarray) -> Distance:
        sums = kernel_sums(CachedRows(cache, digests), groups, real, of_reference, kernel)
        return mmd_with_error(sums, unbiased=unbiased, scale=scale)

    for samples in sets:
        distance = distance_of(samples.digests, group_of(samples.prompts))
        results[samples.name] = _told(distance, extractor, len(reference))
        if samples.real:
            others = distance_of(samples.real, np.zeros(len(samples.real), dtype=np.int64))
            results[samples.name]["real_images"] = round(others.value, DIGITS)
        distances[samples.name] = distance
    return results, distances


def moments_of(rows: CachedRows) -> Iterator[Moments]:
    """Moments of `rows`, block by block; each is as large as a covariance, so merge them as they come."""
    return (Moments.of(rows.block(at, min(at + BLOCK, len(rows)))) for at in range(0, len(rows), BLOCK))


def grouped(rows: CachedRows, groups: np.ndarray) -> Sample:
    """Samples in their jackknife groups: features of few, moments of many."""
    if len(rows) <= rows.cache.dimensions:
        return GroupedRows(rows.block(0, len(rows)), groups)
    members = [np.flatnonzero(groups == group) for group in range(GROUPS)]
    chosen = [[rows.digests[int(at)] for at in group] for group in members if len(group)]
    return GroupedMoments([merge(moments_of(CachedRows(rows.cache, digests))) for digests in chosen])


def gaussian_of(cache: FeatureCache, digests: Sequence[str]) -> Gaussian:
    """Mean and covariance of images.

    Raises:
        UserError: fewer than two.
    """
    rows = CachedRows(cache, digests)
    if len(rows) <= cache.dimensions:
        return Gaussian.of(rows.block(0, len(rows)))
    return merge(moments_of(rows)).gaussian()


def statistics_file(output: Path, extractor: Extractor) -> Path:
    """Where the statistics of a reference are kept."""
    return output / "statistics" / f"{extractor.protocol.replace('/', '-')}.npz"


def _told(distance: Distance, extractor: Extractor, n_reference: int | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "value": _rounded(distance.value),
        "jackknife_se": _rounded(distance.se),
        "n": distance.count,
        "n_reference": n_reference,
        "dimensions": extractor.dimensions,
        "weights": extractor.weights,
        "standard": extractor.standard,
    }
    if distance.extrapolated is not None:
        told["bias_corrected"] = _rounded(distance.bias_corrected)
        told["extrapolated"] = _rounded(distance.extrapolated)
    return told


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def paired(
    distances: Mapping[str, Mapping[str, Distance]], prompts: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Differences between sample sets in each distance, from jackknife groups of the same prompts.

    Args:
        distances: protocol and sample set to distance.
        prompts: of each sample set; only sets with the same prompts in the same order are paired.

    Returns:
        rows with protocol, a, b, difference (a - b), ci95 (t with 9 degrees of freedom) and whether the two
        can be told apart.
    """
    rows = []
    for protocol, by_set in distances.items():
        names = list(by_set)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                first, second = by_set[a], by_set[b]
                if list(prompts[a]) == list(prompts[b]) and first.left_out and second.left_out:
                    rows.append({"protocol": protocol, "a": a, "b": b, **_difference(first, second)})
    return rows


def _difference(a: Distance, b: Distance) -> dict[str, Any]:
    from scipy.stats import t

    value = a.value - b.value
    se = jackknife_se([x - y for x, y in zip(a.left_out, b.left_out, strict=True)])
    reach = float(t.ppf(0.975, len(a.left_out) - 1)) * se
    low, high = value - reach, value + reach
    return {
        "difference": _rounded(value),
        "ci95": [_rounded(low), _rounded(high)],
        "distinguishable": low > 0 or high < 0,
        "n": a.count,
    }
