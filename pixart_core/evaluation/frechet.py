"""Fréchet distance between Gaussians fitted to image features, in float64, with an honest error.

The number means nothing without its feature extractor, so results carry the extractor's name. With
anything but the TensorFlow port of Inception it is not FID and is never called so.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pixart_core.errors import UserError

GROUPS = 10  # of the jackknife: each leaves out 10 %
LEAST = 2 * GROUPS  # images below which no error is given
# Shares of the sample, in groups, through which FID is extrapolated to infinitely many images.
EXTRAPOLATED = (5, 7, 9, 10)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
        count: images that they come from, None where nobody said.
    """

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]
    count: int | None = None

    @functools.cached_property
    def root(self) -> Float[np.ndarray, "features features"]:
        """Symmetric square root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        # Rounding makes zero eigenvalues slightly negative.
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


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
        if self.count < 2:
            raise UserError("a Frechet distance needs at least 2 images on each side")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def merge(moments: Iterable[Moments]) -> Moments:
    """Moments of all samples together."""
    return functools.reduce(Moments.merged, moments)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a) + Tr(S_b) - 2 Tr((S_a S_b)^1/2).

    The last trace is the nuclear norm of S_a^1/2 S_b^1/2: symmetric square roots and one SVD, exact
    also for singular covariances, where `scipy.linalg.sqrtm` loses digits or turns complex.
    """
    cross = np.linalg.svd(a.root @ b.root, compute_uv=False).sum()
    delta = a.mean - b.mean
    return float(delta @ delta + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


@dataclass(frozen=True)
class Distance:
    """A distance and what is known about its error; the reference is held fixed.

    Attributes:
        value: of all samples.
        count: samples.
        se: delete-10 % jackknife standard error; None below `LEAST` samples. (A bootstrap would repeat
            images, which inflates the distance.)
        bias_corrected: the jackknife's estimate without the bias of finite samples, to first order.
        extrapolated: the distance at infinitely many samples, by a line in 1/n (Chong and Forsyth 2020);
            None where half the samples do not span the features, so that no line holds.
        left_out: the distance without each of the groups.
    """

    value: float
    count: int
    se: float | None = None
    bias_corrected: float | None = None
    extrapolated: float | None = None
    left_out: tuple[float, ...] = ()


def frechet_with_error(parts: Sequence[Moments], reference: Gaussian) -> Distance:
    """Distance of all `parts` (see `group_of`) together to `reference`, with its jackknife."""
    whole = merge(parts)
    value = frechet_distance(whole.gaussian(), reference)
    if len(parts) < GROUPS or whole.count < LEAST:
        return Distance(value, whole.count)
    left_out = [
        frechet_distance(merge([*parts[:i], *parts[i + 1 :]]).gaussian(), reference)
        for i in range(len(parts))
    ]
    extrapolated = None
    if whole.count // 2 > len(reference.mean):
        extrapolated = _at_infinity(parts, reference, {GROUPS: value, GROUPS - 1: float(np.mean(left_out))})
    return Distance(
        value,
        whole.count,
        jackknife_se(left_out),
        GROUPS * value - (GROUPS - 1) * float(np.mean(left_out)),
        extrapolated,
        tuple(left_out),
    )


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


def _at_infinity(parts: Sequence[Moments], reference: Gaussian, known: dict[int, float]) -> float:
    """The intercept of distance over 1/n; smaller shares are the mean of the first and the last groups."""
    total = sum(part.count for part in parts)
    inverse, values = [], []
    for share in EXTRAPOLATED:
        value = known.get(share)
        if value is None:
            ends = (parts[:share], parts[-share:])
            value = float(np.mean([frechet_distance(merge(end).gaussian(), reference) for end in ends]))
        inverse.append(GROUPS / (share * total))
        values.append(value)
    return float(np.polyfit(inverse, values, 1)[1])
