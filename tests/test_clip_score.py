"""The CLIP score, its null, intervals and pairs: closed forms; pictures that show their prompts or not."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from test_report import make_samples

from pixart_core.evaluation.clip_score import clip_scores
from pixart_core.evaluation.paired import paired_difference
from pixart_core.evaluation.sample_set import SampleSet, read_sample_set


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def embeddings(noise: float, prompts: int = 50, each: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, texts, prompt of each image): images are their prompt's embedding with noise."""
    random = np.random.default_rng(0)
    texts = unit(random.normal(size=(prompts, 12)))
    prompt_of = np.repeat(np.arange(prompts), each)
    return unit(texts[prompt_of] + noise * random.normal(size=(len(prompt_of), 12))), texts, prompt_of


def test_score_is_the_mean_cosine_neither_scaled_nor_clamped() -> None:
    images, texts, prompt_of = embeddings(0.5)
    scores, values = clip_scores(-images, texts, prompt_of, bootstrap=50, seed=0)
    assert values == pytest.approx([-image @ texts[at] for image, at in zip(images, prompt_of, strict=True)])
    assert scores["score"] == pytest.approx(values.mean(), abs=1e-4)
    assert scores["score"] < 0
    assert (scores["n"], scores["prompts"]) == (100, 50)


def test_null_never_meets_its_own_prompt() -> None:
    # With orthogonal prompts and exact pictures: 1 for the own prompt, 0 for every other.
    texts = np.eye(20)
    scores, _ = clip_scores(texts.copy(), texts, np.arange(20), bootstrap=50, seed=0)
    assert (scores["score"], scores["null"], scores["score_minus_null"]) == (1, 0, 1)


def test_pictures_of_their_prompts_beat_the_null_and_noise_does_not() -> None:
    images, texts, prompt_of = embeddings(0.5)
    scores, _ = clip_scores(images, texts, prompt_of, bootstrap=500, seed=0)
    assert scores["score_minus_null_ci95"][0] > 0.3
    noise = unit(np.random.default_rng(9).normal(size=images.shape))
    scores, _ = clip_scores(noise, texts, prompt_of, bootstrap=500, seed=0)
    assert scores["score_minus_null_ci95"][0] < 0 < scores["score_minus_null_ci95"][1]


def test_interval_is_that_of_the_mean_over_prompts() -> None:
    images, texts, prompt_of = embeddings(1.0, prompts=400, each=1)
    scores, values = clip_scores(images, texts, prompt_of, bootstrap=4000, seed=0)
    expected = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(400))
    assert scores["ci95"] == pytest.approx(expected, abs=0.004)
    # The same pictures again are no new information: prompts are resampled, not pictures.
    twice, _ = clip_scores(np.repeat(images, 2, 0), texts, np.repeat(prompt_of, 2), bootstrap=4000, seed=0)
    assert twice["ci95"] == pytest.approx(scores["ci95"], abs=0.004)


def test_one_prompt_has_no_null() -> None:
    images, texts, _ = embeddings(0.5, prompts=1, each=3)
    scores, _ = clip_scores(images, texts, np.zeros(3, dtype=int), bootstrap=50, seed=0)
    assert scores["null"] is scores["score_minus_null"] is scores["score_minus_null_ci95"] is None


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleSet, SampleSet]:
    root: Path = tmp_path_factory.mktemp("sets")
    return tuple(read_sample_set(name, make_samples(root / name, 60)) for name in ("a", "b"))


def test_paired_interval_is_that_of_the_differences(sets: tuple[SampleSet, SampleSet]) -> None:
    random = np.random.default_rng(0)
    common = 10 * random.normal(size=60)  # prompts differ far more than the two sets do
    a, b = common + random.normal(0.5, 0.1, 60), common + random.normal(0, 0.1, 60)
    row = paired_difference(*sets, a, b, 4000, 0)
    assert row is not None
    expected = stats.norm.interval(0.95, (a - b).mean(), (a - b).std() / np.sqrt(60))
    assert row["ci95"] == pytest.approx(expected, abs=0.01)
    assert row["distinguishable"]
    assert row["same_noise"]
    alone = paired_difference(*sets, a, a + random.normal(0, 0.1, 60), 4000, 0)
    assert alone is not None
    assert not alone["distinguishable"]


def test_pairs_without_a_value_are_left_out(sets: tuple[SampleSet, SampleSet]) -> None:
    values = np.ones(60)
    holed = np.where(np.arange(60) < 40, np.nan, 0.0)
    row = paired_difference(*sets, values, holed, 100, 0)
    assert row is not None
    assert (row["n"], row["difference"]) == (20, 1)
    assert paired_difference(*sets, values, np.full(60, np.nan), 100, 0) is None
