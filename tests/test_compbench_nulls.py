"""The null of every category: models that see gain over it, models that say yes to everything do not."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from compbench_run import make_benchmark, options
from PIL import Image

from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.clip_score import ClipScorer
from pixart_core.evaluation.compbench.blip import BlipVqa
from pixart_core.evaluation.compbench.parts import Parts
from pixart_core.evaluation.compbench.score import open_compbench
from pixart_core.evaluation.extractors import Extractor
from pixart_core.evaluation.pictures import look, sampled_pictures
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.progress import Silent
from pixart_core.recipe.compbench import CATEGORIES

CPU = torch.device("cpu")
Seen = Callable[[Image.Image], str]
"""What a picture shows, in words."""


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleSet]:
    folder = tmp_path_factory.mktemp("benchmark")
    return folder, make_benchmark(folder)


def words_of(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


def bag(text: str) -> np.ndarray:
    """Words as a vector of length 1, whatever their order."""
    vector = np.zeros(512, dtype=np.float32)
    for word in words_of(text):
        vector[hash_of(word)] += 1
    return vector / np.linalg.norm(vector)


def hash_of(word: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(word)) % 512


class BagScorer(ClipScorer):
    def texts(self, prompts: Sequence[str], batch_size: int) -> np.ndarray:
        return np.stack([bag(prompt) for prompt in prompts])


def scores(folder: Path, samples: SampleSet, cache: Path, seen: Seen, patch: pytest.MonkeyPatch) -> dict:
    """All categories, by a BLIP and a CLIP that see what `seen` says, and the benchmark's own boxes."""

    def answers(
        _: BlipVqa, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]
    ) -> list[tuple[float, ...]]:
        return [
            tuple(0.9 if set(words_of(text)) <= set(words_of(seen(image))) else 0.1 for text in texts)
            for image, texts in zip(images, questions, strict=True)
        ]

    patch.setattr(BlipVqa, "answers", answers)
    towers = Extractor("bags", "clip/bags-cos@1", False, "", 512, lambda image: bag(seen(image)), np.asarray)
    parts = Parts(options(folder), CATEGORIES, CPU, 4, BagScorer(towers, None, None, CPU))
    scoring = open_compbench(samples, options(folder), parts, Caches(cache), Silent())
    look(sampled_pictures(samples), scoring.askers, 4, Silent())
    return scoring.result()["categories"]


def test_models_that_see_gain_over_the_null_in_every_category(
    benchmark: tuple[Path, SampleSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, samples = benchmark
    prompts = {samples.picture(sample).tobytes(): sample.prompt for sample in samples.samples}
    found = scores(folder, samples, tmp_path, lambda image: prompts[image.tobytes()], monkeypatch)
    assert set(found) == set(CATEGORIES)
    for category, result in found.items():
        assert result["score_minus_null"] > 0.15, category
        assert result["score_minus_null"] == pytest.approx(result["score"] - result["null"], abs=2e-4)


def test_models_that_say_yes_to_everything_gain_nothing(
    benchmark: tuple[Path, SampleSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, samples = benchmark
    everything = " ".join(sample.prompt for sample in samples.samples)
    found = scores(folder, samples, tmp_path, lambda _: everything, monkeypatch)
    for category in ("color", "shape", "texture"):
        assert found[category]["score"] > 0.8
        assert found[category]["score_minus_null"] == 0
    # Every image is embedded alike: what prompts gain and lose by the exchange is the same.
    assert found["non_spatial"]["score_minus_null"] == pytest.approx(0, abs=1e-4)
