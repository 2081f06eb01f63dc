"""Fréchet distance against closed forms, scipy's sqrtm, and its own laws."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from pixart_core.errors import UserError
from pixart_core.evaluation.frechet import (
    Moments,
    extract,
    extractor_label,
    frechet_distance,
    frechet_with_error,
    load_extractor,
    merge,
)


def gaussian(seed: int, count: int = 500, features: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, features)) @ random.normal(size=(features, features)) + seed


def textbook(a: np.ndarray, b: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    delta = a.mean(0) - b.mean(0)
    return float(delta @ delta + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real))


def test_equals_the_textbook_formula() -> None:
    a, b = gaussian(1), gaussian(2)
    distance = frechet_distance(Moments.of(a), Moments.of(b))
    assert distance == pytest.approx(textbook(a, b), rel=1e-9)


def test_commuting_covariances_have_a_closed_form() -> None:
    mean, left, right = np.array([3.0, -1.0]), np.array([4.0, 9.0]), np.array([1.0, 25.0])
    a = Moments(101, np.zeros(2), np.diag(left) * 100)
    b = Moments(101, mean, np.diag(right) * 100)
    expected = (mean**2).sum() + ((np.sqrt(left) - np.sqrt(right)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_is_zero_for_equal_samples_and_symmetric() -> None:
    a, b = Moments.of(gaussian(1)), Moments.of(gaussian(2))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_fewer_images_than_features_still_give_a_number() -> None:
    a, b = gaussian(1, count=5, features=40), gaussian(1, count=6, features=40) + 1
    distance = frechet_distance(Moments.of(a), Moments.of(b))
    assert np.isfinite(distance)
    assert distance > 0
    assert frechet_distance(Moments.of(a), Moments.of(a)) == pytest.approx(0, abs=1e-8)


def test_merged_moments_equal_those_of_everything_even_far_from_zero() -> None:
    values = gaussian(3) + 1e6
    merged = merge(Moments.of(part) for part in np.array_split(values, 7))
    assert merged.count == len(values)
    np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(merged.covariance, np.cov(values.T), rtol=1e-8)


def test_jackknife_error_is_of_the_size_of_the_spread() -> None:
    reference = Moments.of(gaussian(1, count=20_000))
    random = np.random.default_rng(0)
    mixing = np.random.default_rng(5).normal(size=(12, 12))
    results = [frechet_with_error(random.normal(size=(300, 12)) @ mixing, reference) for _ in range(30)]
    spread = np.std([value for value, _ in results])
    errors = np.mean([error for _, error in results if error is not None])
    assert 0.5 * spread < errors < 2 * spread


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="2 images"):
        frechet_distance(Moments.of(gaussian(1, count=1)), Moments.of(gaussian(2)))


def test_pixel_features_are_area_averages_at_any_size() -> None:
    extractor = load_extractor("pixels-8x8")
    random = np.random.default_rng(0)
    cells = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(np.kron(cells, np.ones((*scale, 1), np.uint8))) for scale in [(8, 8), (14, 10)]]
    features = extract(images, extractor)
    np.testing.assert_allclose(features, np.stack([cells.ravel() / 255] * 2), atol=1e-12)


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import json

    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_vision_model_gives_its_pooled_output_and_its_name(vision_model: Path) -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (40, 24, 3), dtype=np.uint8)) for _ in range(35)]
    extractor = load_extractor(str(vision_model))
    features = extract(images, extractor)
    assert features.shape == (35, 32)
    # One image alone gives the same features as in its batch.
    np.testing.assert_allclose(features[33:34], extractor(images[33:34]), atol=1e-5)
    assert extractor_label(str(vision_model)) == "tiny-vit"
    assert extractor_label("facebook/dinov2-base") == "facebook/dinov2-base"


def test_unknown_extractor_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features"):
        load_extractor(str(tmp_path / "nothing"))
