"""Maximum mean discrepancy between features: KID and CMMD, over all pairs instead of random subsets."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from pixart_core.errors import UserError
from pixart_core.evaluation.frechet import GROUPS, LEAST, Distance, jackknife_se

BLOCK = 2048  # rows of features that are compared at once: 32 MB a block of the kernel
Kernel = Callable[[Float[np.ndarray, "m d"], Float[np.ndarray, "n d"]], Float[np.ndarray, "m n"]]
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class Rows(Protocol):
    """Features that may lie on disk."""

    def __len__(self) -> int: ...

    def block(self, start: int, stop: int) -> Float[np.ndarray, "rows d"]:
        """Rows start..stop, float64."""


def polynomial(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m n"]:
    """(x.y / d + 1)^3, the kernel of KID (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m n"]:
    """exp(-|x - y|^2 / 2 sigma^2) with sigma = 10, the kernel of CMMD (Jayasumana et al. 2024)."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.exp(-squares / (2 * CMMD_SIGMA**2))


@dataclass(frozen=True, eq=False)
class KernelSums:
    """Sums of a kernel over pairs of samples by jackknife group, and over the reference.

    Attributes:
        counts: samples of each group.
        within: sum over pairs (i of group g, j of group h), i = j included.
        diagonal: sum of k(i, i) of each group.
        cross: sum over pairs (i of group g, any reference image).
        reference: (sum over all pairs of the reference, sum of its diagonal, its count).
    """

    counts: Float[np.ndarray, " groups"]
    within: Float[np.ndarray, "groups groups"]
    diagonal: Float[np.ndarray, " groups"]
    cross: Float[np.ndarray, " groups"]
    reference: tuple[float, float, int]

    def mmd(self, left_out: Collection[int] = (), *, unbiased: bool) -> float:
        """MMD^2 of the samples without some groups to the reference.

        Args:
            unbiased: leave pairs of an image with itself out (KID); else the mean over all pairs (CMMD).
        """
        kept = np.array([group not in left_out for group in range(len(self.counts))])
        m, (pairs, own, n) = self.counts[kept].sum(), self.reference
        inside = self.within[np.ix_(kept, kept)].sum()
        between = 2 * self.cross[kept].sum() / (m * n)
        if unbiased:
            inside = (inside - self.diagonal[kept].sum()) / (m * (m - 1))
            return float(inside + (pairs - own) / (n * (n - 1)) - between)
        return float(inside / m**2 + pairs / n**2 - between)


def reference_sums(reference: Rows, kernel: Kernel) -> tuple[float, float, int]:
    """What `kernel_sums` needs of the reference alone; the same for every sample set."""
    groups = np.zeros(len(reference), dtype=np.int64)
    within, diagonal = _within(reference, groups, 1, kernel)
    return float(within.sum()), float(diagonal.sum()), len(reference)


def kernel_sums(
    samples: Rows,
    groups: np.ndarray,
    reference: Rows,
    of_reference: tuple[float, float, int],
    kernel: Kernel,
) -> KernelSums:
    """Sum `kernel` over all pairs, block by block.

    Args:
        groups: jackknife group of each sample (`frechet.group_of`).

    Raises:
        UserError: fewer than two images on one side.
    """
    if min(len(samples), len(reference)) < 2:
        raise UserError("a kernel distance needs at least 2 images on each side")
    count = int(groups.max()) + 1
    within, diagonal = _within(samples, groups, count, kernel)
    cross = np.zeros(count)
    for start, stop in _blocks(len(samples)):
        x, members = samples.block(start, stop), _members(groups[start:stop], count)
        for first, last in _blocks(len(reference)):
            cross += members @ kernel(x, reference.block(first, last)).sum(1)
    counts = np.bincount(groups, minlength=count).astype(np.float64)
    return KernelSums(counts, within, diagonal, cross, of_reference)


def mmd_with_error(sums: KernelSums, *, unbiased: bool, scale: float = 1.0) -> Distance:
    """MMD^2 times `scale`, with its delete-10 % jackknife error; the reference is held fixed."""
    count = int(sums.counts.sum())
    value = scale * sums.mmd(unbiased=unbiased)
    if len(sums.counts) < GROUPS or count < LEAST:
        return Distance(value, count)
    left_out = [scale * sums.mmd((group,), unbiased=unbiased) for group in range(len(sums.counts))]
    return Distance(value, count, jackknife_se(left_out), left_out=tuple(left_out))


def _within(rows: Rows, groups: np.ndarray, count: int, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    within, diagonal = np.zeros((count, count)), np.zeros(count)
    for start, stop in _blocks(len(rows)):
        x, members = rows.block(start, stop), _members(groups[start:stop], count)
        for first, last in _blocks(start + len(x)):
            own = first == start
            values = kernel(x, x if own else rows.block(first, last))
            sums = members @ values @ _members(groups[first:last], count).T
            within += sums if own else sums + sums.T
            if own:
                diagonal += members @ np.diagonal(values)
    return within, diagonal


def _members(groups: Sequence[int] | np.ndarray, count: int) -> Float[np.ndarray, "groups rows"]:
    """1 where a row belongs to a group."""
    return (np.arange(count)[:, None] == np.asarray(groups)).astype(np.float64)


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
