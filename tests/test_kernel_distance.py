"""KID and CMMD against formulas over all pairs and torchmetrics; their jackknife, bias and blocks."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

from pixart_core.errors import UserError
from pixart_core.evaluation import kernel_distance
from pixart_core.evaluation.frechet import Distance, group_of
from pixart_core.evaluation.kernel_distance import (
    kernel_sums,
    mmd_with_error,
    polynomial,
    rbf,
    reference_sums,
)


class Rows:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def block(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


def features(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)) + shift


def distance(x: np.ndarray, y: np.ndarray, kernel: kernel_distance.Kernel, **options: object) -> Distance:
    groups = group_of([str(i) for i in range(len(x))])
    sums = kernel_sums(Rows(x), groups, Rows(y), reference_sums(Rows(y), kernel), kernel)
    return mmd_with_error(sums, **options)


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton et al. 2012, equation 3, term by term."""
    k = [[(a @ b / 6 + 1) ** 3 for b in [*x, *y]] for a in [*x, *y]]
    m, n = len(x), len(y)
    xx = sum(k[i][j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k[m + i][m + j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k[i][m + j] for i in range(m) for j in range(n)) / (m * n)


def test_kid_equals_the_formula_and_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_distance, "BLOCK", 7)
    x, y = features(0, 30, 0.5), features(1, 23)
    assert distance(x, y, polynomial, unbiased=True).value == pytest.approx(unbiased(x, y), rel=1e-10)
    same = features(2, 30)
    kernels = [poly_kernel(torch.tensor(a), torch.tensor(b)) for a, b in ((x, x), (x, same), (same, same))]
    theirs = maximum_mean_discrepancy(*kernels).item()
    assert distance(x, same, polynomial, unbiased=True).value == pytest.approx(theirs, rel=1e-10)


def test_cmmd_equals_its_reference_formula() -> None:
    x, y = features(0, 30, 3.0), features(1, 23)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return np.mean([[np.exp(-np.sum((u - v) ** 2) / 200) for v in b] for u in a])

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    found = distance(x, y, rbf, unbiased=False, scale=1000.0)
    assert found.value == pytest.approx(expected, rel=1e-10)


def test_jackknife_equals_leaving_images_out() -> None:
    x, y = features(0, 41, 0.3), features(1, 20)
    groups = group_of([str(i) for i in range(41)])
    left_out = [unbiased(x[groups != group], y) for group in range(10)]
    found = distance(x, y, polynomial, unbiased=True)
    assert found.left_out == pytest.approx(left_out, rel=1e-9)
    assert found.se == pytest.approx(np.sqrt(9 * np.var(left_out)), rel=1e-7)


def test_kid_of_equal_distributions_is_zero_on_average() -> None:
    values = [
        distance(features(2 * i, 20), features(2 * i + 1, 20), polynomial, unbiased=True).value
        for i in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="2 images"):
        distance(features(0, 1), features(1, 5), polynomial, unbiased=True)
