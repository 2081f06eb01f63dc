"""Fréchet distance between Gaussians fitted to image features, in float64, with an honest error.

The number means nothing without its feature extractor, so results carry the extractor's name. With
anything but the TensorFlow port of Inception it is not FID and is never called so.
"""

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from pixart_core.errors import UserError

GROUPS = 10  # of the jackknife: each leaves out 10 %
LEAST = 2 * GROUPS  # images below which no error is given
# Shares of the sample, in groups, through which FID is extrapolated to infinitely many images.
EXTRAPOLATED = (5, 7, 9, 10)


class Gaussian:
    """Mean and covariance of features; the covariance as A A^T, where A may be thin.

    Attributes:
        mean: (d,)
        factor: A, (d, rank or more): for fewer images than features, the centred features themselves.
        trace: of the covariance.
        count: images that they come from, None where nobody said.
    """

    def __init__(self, mean: np.ndarray, covariance: np.ndarray, count: int | None = None) -> None:
        """From a covariance: A is its symmetric root, exact also where it is singular."""
        self.mean, self.count = mean, count
        self.trace = float(np.trace(covariance))
        self._covariance: np.ndarray | None = covariance
        self._factor: np.ndarray | None = None

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Gaussian":
        """Of few images, without their d x d covariance.

        Raises:
            UserError: fewer than two images.
        """
        count = _at_least_two(len(features))
        result = cls.__new__(cls)
        result.mean, result.count = features.mean(0), count
        result._factor = (features - result.mean).T / np.sqrt(count - 1)
        result._covariance, result.trace = None, float((result._factor**2).sum())
        return result

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        if self._covariance is None:
            self._covariance = self.factor @ self.factor.T
        return self._covariance

    @property
    def factor(self) -> Float[np.ndarray, "d rank"]:
        if self._factor is None:
            values, vectors = np.linalg.eigh(self.covariance)
            # Rounding makes zero eigenvalues slightly negative.
            self._factor = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
        return self._factor


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and centred second moment of features, mergeable without loss.

    Chan, Golub and LeVeque 1979: centred float64 sums keep 16 digits where uncentred ones keep 3.
    """

    count: int
    mean: Float[np.ndarray, " features"]
    scatter: Float[np.ndarray, "features features"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "batch features"]) -> "Moments":
        values = np.asarray(features, dtype=np.float64)
        mean = values.mean(0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def merged(self, other: "Moments") -> "Moments":
        """Moments of both samples together."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count),
        )

    def gaussian(self) -> Gaussian:
        """Mean and covariance (over count - 1).

        Raises:
            UserError: fewer than two images.
        """
        _at_least_two(self.count)
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def merge(moments: Iterable[Moments]) -> Moments:
    """Moments of all samples together."""
    return functools.reduce(Moments.merged, moments)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a) + Tr(S_b) - 2 Tr((S_a S_b)^1/2).

    With S_a = A A^T and S_b = B B^T the last trace is the nuclear norm of A^T B: one SVD, exact also for
    singular covariances, where `scipy.linalg.sqrtm` loses digits or turns complex.
    """
    cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    delta = a.mean - b.mean
    return float(delta @ delta + a.trace + b.trace - 2 * cross)


class Sample(Protocol):
    """Features of samples in jackknife groups."""

    @property
    def count(self) -> int:
        """Of all samples."""

    @property
    def groups(self) -> int:
        """How many there are."""

    def gaussian(self, groups: Collection[int]) -> Gaussian:
        """Of the samples in some groups."""


@dataclass(frozen=True, eq=False)
class GroupedMoments:
    """Many samples: only the moments of each group are in memory."""

    parts: Sequence[Moments]

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def groups(self) -> int:
        return len(self.parts)

    def gaussian(self, groups: Collection[int]) -> Gaussian:
        return merge(self.parts[group] for group in groups).gaussian()


@dataclass(frozen=True, eq=False)
class GroupedRows:
    """Fewer samples than features: their features are smaller than a covariance.

    Attributes:
        rows: (n, d)
        members: group of each row.
    """

    rows: Float[np.ndarray, "n d"]
    members: np.ndarray

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def groups(self) -> int:
        return int(self.members.max()) + 1

    def gaussian(self, groups: Collection[int]) -> Gaussian:
        return Gaussian.of(self.rows[np.isin(self.members, list(groups))])


@dataclass(frozen=True)
class Distance:
    """A distance and what is known about its error; the reference is held fixed.

    Attributes:
        value: of all samples.
        count: samples.
        se: delete-10 % jackknife standard error; None below `LEAST` samples. (A bootstrap would repeat
            images, which inflates the distance.)
        bias_corrected: the jackknife's estimate without the bias of finite samples, to first order.
        extrapolated: the distance at infinitely many samples, by a line in 1/n (Chong and Forsyth 2020).
            Both are None where half the samples do not span the features: the bias is no line in 1/n there.
        left_out: the distance without each of the groups.
    """

    value: float
    count: int
    se: float | None = None
    bias_corrected: float | None = None
    extrapolated: float | None = None
    left_out: tuple[float, ...] = ()


def frechet_with_error(sample: Sample, reference: Gaussian) -> Distance:
    """Distance of all of `sample` to `reference`, with its jackknife over groups (see `group_of`).

    Raises:
        UserError: fewer than two samples.
    """
    everything = range(sample.groups)
    value = frechet_distance(sample.gaussian(everything), reference)
    if sample.groups < GROUPS or sample.count < LEAST:
        return Distance(value, sample.count)
    left_out = [
        frechet_distance(sample.gaussian([g for g in everything if g != group]), reference)
        for group in everything
    ]
    mean = float(np.mean(left_out))
    corrected = extrapolated = None
    if sample.count // 2 > len(reference.mean):
        corrected = GROUPS * value - (GROUPS - 1) * mean
        extrapolated = _at_infinity(sample, reference, {GROUPS: value, GROUPS - 1: mean})
    return Distance(value, sample.count, jackknife_se(left_out), corrected, extrapolated, tuple(left_out))


def jackknife_se(left_out: Sequence[float]) -> float:
    """Standard error from the values without each of the groups."""
    values = np.array(left_out)
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))


def group_of(keys: Sequence[str]) -> np.ndarray:
    """Jackknife group of each sample: samples of one key (prompt) stay together, keys are dealt in turn.

    With fewer than `GROUPS` keys every sample is dealt on its own.
    """
    ranks = {key: rank for rank, key in enumerate(dict.fromkeys(keys))}
    dealt = [ranks[key] for key in keys] if len(ranks) >= GROUPS else range(len(keys))
    return np.array([rank % GROUPS for rank in dealt], dtype=np.int64)


def _at_infinity(sample: Sample, reference: Gaussian, known: dict[int, float]) -> float:
    """The intercept of distance over 1/n; smaller shares are the mean of the first and the last groups."""
    inverse, values = [], []
    for share in EXTRAPOLATED:
        value = known.get(share)
        if value is None:
            ends = (range(share), range(GROUPS - share, GROUPS))
            value = float(np.mean([frechet_distance(sample.gaussian(end), reference) for end in ends]))
        inverse.append(GROUPS / (share * sample.count))
        values.append(value)
    return float(np.polyfit(inverse, values, 1)[1])


def _at_least_two(count: int) -> int:
    if count < 2:
        raise UserError("a Frechet distance needs at least 2 images on each side")
    return count
