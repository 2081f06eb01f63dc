"""Fréchet distance against closed forms, scipy's sqrtm, and its own laws."""

import numpy as np
import pytest
import scipy.linalg

from pixart_core.errors import UserError
from pixart_core.evaluation.frechet import (
    Gaussian,
    GroupedMoments,
    GroupedRows,
    Moments,
    frechet_distance,
    frechet_with_error,
    group_of,
    merge,
)


def gaussian(seed: int, count: int = 500, features: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, features)) @ random.normal(size=(features, features)) + seed


def fitted(values: np.ndarray) -> Gaussian:
    return Moments.of(values).gaussian()


def parts(values: np.ndarray) -> GroupedMoments:
    groups = group_of([str(i) for i in range(len(values))])
    return GroupedMoments([Moments.of(values[groups == group]) for group in range(10)])


def textbook(a: np.ndarray, b: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    delta = a.mean(0) - b.mean(0)
    return float(delta @ delta + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real))


def test_equals_the_textbook_formula() -> None:
    a, b = gaussian(1), gaussian(2)
    distance = frechet_distance(fitted(a), fitted(b))
    assert distance == pytest.approx(textbook(a, b), rel=1e-9)


def test_commuting_covariances_have_a_closed_form() -> None:
    mean, left, right = np.array([3.0, -1.0]), np.array([4.0, 9.0]), np.array([1.0, 25.0])
    a, b = Gaussian(np.zeros(2), np.diag(left)), Gaussian(mean, np.diag(right))
    expected = (mean**2).sum() + ((np.sqrt(left) - np.sqrt(right)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_is_zero_for_equal_samples_and_symmetric() -> None:
    a, b = fitted(gaussian(1)), fitted(gaussian(2))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_fewer_images_than_features_still_give_a_number() -> None:
    a, b = gaussian(1, count=5, features=40), gaussian(1, count=6, features=40) + 1
    distance = frechet_distance(fitted(a), fitted(b))
    assert np.isfinite(distance)
    assert distance > 0
    assert frechet_distance(fitted(a), fitted(a)) == pytest.approx(0, abs=1e-8)


def test_merged_moments_equal_those_of_everything_even_far_from_zero() -> None:
    values = gaussian(3) + 1e6
    merged = merge(Moments.of(part) for part in np.array_split(values, 7))
    assert merged.count == len(values)
    np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(merged.gaussian().covariance, np.cov(values.T), rtol=1e-8)


def test_jackknife_error_is_of_the_size_of_the_spread() -> None:
    reference = fitted(gaussian(1, count=20_000))
    random = np.random.default_rng(0)
    mixing = np.random.default_rng(5).normal(size=(12, 12))
    results = [
        frechet_with_error(parts(random.normal(size=(300, 12)) @ mixing), reference) for _ in range(30)
    ]
    spread = np.std([result.value for result in results])
    errors = np.mean([result.se for result in results if result.se is not None])
    assert 0.5 * spread < errors < 2 * spread


def test_jackknife_equals_its_textbook_formulas() -> None:
    values, reference = gaussian(2, count=203), fitted(gaussian(1))
    groups = group_of([str(i) for i in range(203)])
    result = frechet_with_error(parts(values), reference)
    left_out = [textbook_to(values[groups != group], reference) for group in range(10)]
    assert result.value == pytest.approx(textbook_to(values, reference), rel=1e-9)
    assert result.left_out == pytest.approx(left_out, rel=1e-9)
    assert result.se == pytest.approx(np.sqrt(9 * np.var(left_out)), rel=1e-7)
    assert result.bias_corrected == pytest.approx(10 * result.value - 9 * np.mean(left_out), rel=1e-7)


def textbook_to(values: np.ndarray, reference: Gaussian) -> float:
    root = scipy.linalg.sqrtm(np.cov(values.T) @ reference.covariance).real
    delta = values.mean(0) - reference.mean
    return float(delta @ delta + np.trace(np.cov(values.T) + reference.covariance - 2 * root))


def test_bias_of_few_images_is_taken_away() -> None:
    random = np.random.default_rng(1)
    true = Gaussian(np.zeros(8), np.eye(8))  # samples are drawn from the reference: the distance is 0
    results = [frechet_with_error(parts(random.normal(size=(200, 8))), true) for _ in range(40)]
    plain = np.mean([result.value for result in results])
    assert plain > 0.1
    for corrected in (
        [result.bias_corrected for result in results],
        [result.extrapolated for result in results],
    ):
        assert abs(np.mean(np.array(corrected, dtype=float))) < 0.1 * plain


def test_features_of_few_images_and_moments_of_many_give_one_result() -> None:
    values, reference = gaussian(1, count=70, features=40), fitted(gaussian(2, features=40))
    groups = group_of([str(i) for i in range(70)])
    few = frechet_with_error(GroupedRows(values, groups), reference)
    many = frechet_with_error(parts(values), reference)
    assert few.value == pytest.approx(many.value, rel=1e-9)
    assert few.left_out == pytest.approx(many.left_out, rel=1e-9)
    np.testing.assert_allclose(Gaussian.of(values).covariance, np.cov(values.T), atol=1e-10)


def test_no_line_is_drawn_through_fewer_images_than_features() -> None:
    result = frechet_with_error(parts(gaussian(1, count=70, features=40)), fitted(gaussian(2, features=40)))
    assert result.se is not None
    assert result.extrapolated is result.bias_corrected is None


def test_images_of_one_prompt_are_left_out_together() -> None:
    prompts = [f"prompt {i // 3}" for i in range(60)]
    groups = group_of(prompts)
    assert all(len(set(groups[i : i + 3])) == 1 for i in range(0, 60, 3))
    assert np.bincount(groups).tolist() == [6] * 10
    # Too few prompts to deal out: images are dealt on their own.
    assert np.bincount(group_of(["same"] * 50)).tolist() == [5] * 10


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="2 images"):
        fitted(gaussian(1, count=1))
