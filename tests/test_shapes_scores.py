"""The shapes benchmark: what detectors see, and what scores and their nulls say."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage, stats

from pixart_core.data.shapes import Scene, SceneObject, draw_scene, render_scene, scene_caption
from pixart_core.errors import UserError
from pixart_core.evaluation.shapes import METRICS, exact, mistakes, score_shapes
from pixart_core.evaluation.shapes_detect import Detection, detect_scene

SCENES = [draw_scene(0, "heldout", i) for i in range(200)]
PROMPTS = [scene_caption(scene) for scene in SCENES]


def pictures(height: int = 64, width: int = 64) -> list[np.ndarray]:
    return [render_scene(scene, height, width) for scene in SCENES]


def share_exact(images: list[np.ndarray]) -> float:
    found = [detect_scene(image) for image in images]
    return float(np.mean([exact(scene, seen) for scene, seen in zip(SCENES, found, strict=True)]))


def on_white(coverage: np.ndarray) -> np.ndarray:
    soft = np.clip(coverage, 0, 1)[..., None]
    return (255 * (1 - soft) + np.array([30, 60, 230]) * soft).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (48, 48), (64, 64), (96, 96), (112, 80), (80, 112), (128, 128)]
)
def test_rendered_pictures_are_read_exactly(height: int, width: int) -> None:
    assert share_exact(pictures(height, width)) >= 0.99


def test_slight_blur_and_noise_change_nothing() -> None:
    random = np.random.default_rng(0)
    worn = []
    for image in pictures():
        blurred = ndimage.gaussian_filter(image.astype(float), (0.8, 0.8, 0))
        worn.append(np.clip(blurred + random.normal(0, 10, image.shape), 0, 255).astype(np.uint8))
    assert share_exact(worn) >= 0.99


@pytest.mark.parametrize("count", [3, 30])
def test_where_all_are_right_or_none_the_interval_is_that_of_a_share(count: int) -> None:
    right = [detect_scene(image) for image in pictures()[:count]]
    given = SCENES[:count], PROMPTS[:count]
    groups = len(set(given[1]))
    exactly = stats.binomtest(groups, groups).proportion_ci(method="exact")
    score = score_shapes(given[0], right, given[1], seed=0)["exact"]
    assert score["score"] == 1
    assert score["ci95"][0] == pytest.approx(exactly.low - score["null"], abs=1e-4)
    wrong = [detect_scene(np.full((64, 64, 3), 40, np.uint8))] * count
    score = score_shapes(given[0], wrong, given[1], seed=0)["exact"]
    assert score["score"] == 0
    assert score["ci95"][1] == pytest.approx(1 - exactly.low - score["null"], abs=1e-4)


def test_noise_is_unknown() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        noise = random.normal(0, 1, (64, 64, 3))
        smooth = 600 * ndimage.gaussian_filter(noise, (4, 4, 0))
        for image in (random.integers(0, 256, noise.shape), np.clip(128 + smooth, 0, 255)):
            assert detect_scene(image.astype(np.uint8)) == Detection("unknown", ())


def test_forms_outside_the_vocabulary_are_unknown() -> None:
    y, x = np.mgrid[:64, :64] + 0.5 - 32
    forms = {
        "bar": np.maximum(np.abs(x) - 16, np.abs(y) - 6),
        "ring": np.abs(np.hypot(x, y) - 10) - 3,
        "diamond": (np.abs(x) + np.abs(y)) / 2**0.5 - 10,
        "squircle": (x**4 + y**4) ** 0.25 - 10,
        "triangle upside down": np.maximum(-y - 10, (2 * np.abs(x) + y - 10) / 5**0.5),
    }
    for name, distance in forms.items():
        (thing,) = detect_scene(on_white(0.5 - distance)).objects
        assert thing.shape == "unknown", name


def test_color_and_size_between_two_names_are_unknown() -> None:
    between = SceneObject("red", "circle", "large", (0.5, 0.5), "center")
    picture = render_scene(Scene("white", (between,)), 64, 64)
    teal = np.where(picture == (225, 25, 35), (35, 112, 145), picture)  # between green and blue
    assert detect_scene(teal.astype(np.uint8)).objects[0].color == "unknown"
    y, x = np.mgrid[:64, :64] + 0.5 - 32
    assert detect_scene(on_white(0.5 - (np.hypot(x, y) - 11))).objects[0].size == "unknown"


def test_touching_objects_of_two_colors_are_two_objects() -> None:
    left = SceneObject("red", "square", "large", (0.5, 0.3))
    right = SceneObject("blue", "square", "large", (0.5, 0.3 + 28 / 64))
    found = detect_scene(render_scene(Scene("white", (left, right), "left"), 64, 64))
    names = {thing.name for thing in found.objects}
    assert len(found.objects) == 2
    assert names == {("large", "blue", "square"), ("large", "red", "square")}


def test_perfect_samples_score_one_and_beat_their_null() -> None:
    found = [detect_scene(image) for image in pictures()]
    scores = score_shapes(SCENES, found, PROMPTS)
    assert set(scores) == set(METRICS)
    assert scores["exact_single"]["n"] + scores["exact_two"]["n"] == scores["exact"]["n"] == 200
    for name, score in scores.items():
        assert score["score"] == 1.0, name
        assert score["exact_minus_null"] == pytest.approx(1 - score["null"])
        assert score["ci95"][0] > 0.3
        assert score["ci95"][0] <= score["exact_minus_null"] <= score["ci95"][1]
    assert scores["exact"]["null"] < 0.01
    assert scores["color"]["null"] == pytest.approx(1 / 8, abs=0.04)


def test_samples_that_ignore_their_prompts_score_zero_above_null() -> None:
    pool = [detect_scene(image) for image in pictures()]
    random = np.random.default_rng(0)
    found = [pool[i] for i in random.permutation(len(pool))]
    for name, score in score_shapes(SCENES, found, PROMPTS).items():
        assert abs(score["exact_minus_null"]) < 0.1, name
        assert score["ci95"][0] < 0 < score["ci95"][1] or score["score"] == 0, name


def test_one_picture_for_every_prompt_gains_nothing() -> None:
    same = detect_scene(render_scene(SCENES[0], 64, 64))
    for name, score in score_shapes(SCENES, [same] * 200, PROMPTS).items():
        assert abs(score["exact_minus_null"]) < 0.05, name


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"color": "green"}, "color"),
        ({"shape": "square"}, "shape"),
        ({"size": "large"}, "size"),
        ({"center": (0.75, 0.75)}, "position"),
    ],
)
def test_a_mistake_costs_its_metric_and_the_exact_match_only(change: dict, wrong: str) -> None:
    truth = Scene("white", (SceneObject("red", "circle", "small", (0.25, 0.25), "top left"),))
    drawn = Scene("white", (dataclasses.replace(truth.objects[0], **change),))
    found = detect_scene(render_scene(drawn, 64, 64))
    assert mistakes(truth, found) == [wrong]
    assert exact(truth, found) == 0


def test_swapped_objects_miss_only_the_relation() -> None:
    red = SceneObject("red", "circle", "small", (0.5, 0.25))
    blue = SceneObject("blue", "square", "large", (0.5, 0.75))
    truth = Scene("white", (red, blue), "right")
    found = detect_scene(render_scene(Scene("white", (red, blue), "left"), 64, 64))
    assert mistakes(truth, found) == ["relation"]
    assert mistakes(Scene("white", (blue, red), "right"), found) == []


def test_attributes_bound_to_the_wrong_object_are_not_exact() -> None:
    truth = Scene("white", (SceneObject("red", "circle", "small", (0.5, 0.25)),
                            SceneObject("blue", "square", "small", (0.5, 0.75))), "left")  # fmt: skip
    mixed = Scene("white", (SceneObject("blue", "circle", "small", (0.5, 0.25)),
                            SceneObject("red", "square", "small", (0.5, 0.75))), "left")  # fmt: skip
    found = detect_scene(render_scene(mixed, 64, 64))
    assert exact(truth, found) == 0
    assert mistakes(truth, found) != []


def test_interval_narrows_with_more_samples_and_not_with_repeats() -> None:
    random = np.random.default_rng(0)
    images = pictures()
    images = [image if random.random() < 0.7 else images[0] for image in images]
    found = [detect_scene(image) for image in images]

    def width(count: int, times: int = 1) -> float:
        score = score_shapes(SCENES[:count] * times, found[:count] * times, PROMPTS[:count] * times)
        low, high = score["exact"]["ci95"]
        return high - low

    assert width(200) < 0.7 * width(50)
    assert width(50, times=4) == pytest.approx(width(50), rel=0.15)


def test_one_prompt_is_too_few() -> None:
    found = detect_scene(render_scene(SCENES[0], 64, 64))
    with pytest.raises(UserError, match="2 different prompts"):
        score_shapes(SCENES[:1] * 3, [found] * 3, PROMPTS[:1] * 3)
