"""The generated data set: scenes, captions, rendering, and the files on disk."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixart_core.artifacts.manifest import read_manifest
from pixart_core.data.shapes import (
    BACKGROUNDS,
    COLORS,
    LABELS,
    Scene,
    SceneObject,
    draw_scene,
    object_box,
    render_scene,
    scene_caption,
    scene_from_meta,
    scene_meta,
)
from pixart_core.data.shapes_dataset import run_shapes
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import ShapesStep

PICTURE_SIZES = [(64, 64), (96, 96), (112, 80), (80, 112)]


def place(**changes: str) -> Scene:
    thing = {"color": "red", "shape": "circle", "size": "small"} | changes
    return Scene("white", (SceneObject(**thing, center=(0.25, 0.25), position="top left"),))


def test_scene_depends_on_seed_split_and_index_only() -> None:
    backwards = [draw_scene(3, "train", i) for i in reversed(range(40))]
    assert backwards[::-1] == [draw_scene(3, "train", i) for i in range(40)]
    assert draw_scene(3, "train", 7) != draw_scene(4, "train", 7)
    assert draw_scene(3, "train", 7) != draw_scene(3, "heldout", 7)


def test_no_training_content_is_held_out_whatever_the_seed() -> None:
    trained = {draw_scene(seed, "train", i).content for seed in (0, 1) for i in range(2000)}
    held_out = {draw_scene(seed, "heldout", i).content for seed in (0, 1) for i in range(300)}
    assert not trained & held_out
    # All single contents are trained on, except the one in ten held out.
    assert len({content for content in trained if content.count("|") == 1}) > 0.85 * 8 * 4 * 2 * 9


def test_mirrored_words_are_one_content() -> None:
    red, blue = (
        SceneObject("red", "circle", "small", (0.5, 0.25)),
        SceneObject("blue", "square", "large", (0.5, 0.75)),
    )
    assert Scene("white", (red, blue), "left").content == Scene("black", (blue, red), "right").content
    assert Scene("white", (red, blue), "left").content != Scene("white", (blue, red), "left").content


def test_half_of_held_out_prompts_are_single_and_hardly_any_repeats() -> None:
    scenes = [draw_scene(0, "heldout", i) for i in range(300)]
    assert sum(scene.relation is None for scene in scenes) == 150
    assert len({scene_caption(scene) for scene in scenes}) >= 295


def test_classes_are_balanced() -> None:
    counts = Counter(draw_scene(0, "train", i).label for i in range(6400))
    assert set(counts) == set(range(len(LABELS)))
    assert min(counts.values()) > 120  # 200 expected
    assert max(counts.values()) < 280


def test_sizes_used_in_turn_meet_all_kinds() -> None:
    even, odd = (Counter(draw_scene(0, "heldout", i).relation is None for i in r)
                 for r in (range(0, 200, 2), range(1, 200, 2)))  # fmt: skip
    assert even == odd


def test_captions_read_as_documented() -> None:
    assert scene_caption(place()) == "a small red circle at the top left on a white background"
    captions = [scene_caption(draw_scene(0, "train", i)) for i in range(200)]
    assert all(caption == caption.lower() for caption in captions)
    assert any(" to the left of a " in caption for caption in captions)
    assert any(caption.startswith("two ") and "es side by side on a " in caption for caption in captions)
    assert len({word for caption in captions for word in caption.split()}) < 50


@pytest.mark.parametrize(("height", "width"), PICTURE_SIZES)
def test_pictures_show_their_boxes_and_nothing_else(height: int, width: int) -> None:
    for i in range(60):
        scene = draw_scene(1, "train", i)
        picture = render_scene(scene, height, width).astype(int)
        drawn = np.abs(picture - BACKGROUNDS[scene.background]).sum(-1) > 0
        allowed = np.zeros_like(drawn)
        for thing in scene.objects:
            x0, y0, x1, y1 = object_box(thing, height, width)
            assert 0 < x0 < x1 < width
            assert 0 < y0 < y1 < height
            allowed[int(y0 - 0.5) : int(y1 + 1.5), int(x0 - 0.5) : int(x1 + 1.5)] = True
            center = picture[int((y0 + y1) / 2), int((x0 + x1) / 2)]
            np.testing.assert_allclose(center, COLORS[thing.color], atol=1)
        assert not (drawn & ~allowed).any()


@pytest.mark.parametrize(("height", "width"), PICTURE_SIZES)
def test_objects_of_a_pair_never_touch(height: int, width: int) -> None:
    for i in range(400):
        scene = draw_scene(2, "train", i)
        if scene.relation is None:
            continue
        a, b = (object_box(thing, height, width) for thing in scene.objects)
        gap = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
        assert gap >= 3 * min(height, width) / 64


@pytest.mark.parametrize(
    ("shape", "share"), [("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5), ("cross", 0.51)]
)
def test_drawn_area_is_the_area_of_the_shape(shape: str, share: float) -> None:
    scene = Scene("black", (SceneObject("red", shape, "large", (0.5, 0.5), "center"),))
    picture = render_scene(scene, 128, 128).astype(float)
    area = picture.sum() / sum(COLORS["red"])
    assert area == pytest.approx(share * 56**2, rel=0.01)


@pytest.mark.parametrize(("height", "width"), PICTURE_SIZES)
def test_ground_truth_gives_the_scene_back(height: int, width: int) -> None:
    for i in range(30):
        scene = draw_scene(0, "train", i)
        again = scene_from_meta(json.loads(json.dumps(scene_meta(scene, height, width))), height, width)
        assert scene_caption(again) == scene_caption(scene)
        difference = render_scene(again, height, width).astype(int) - render_scene(scene, height, width)
        assert np.abs(difference).max() <= 4  # boxes are rounded to hundredths of a pixel


def small_step(**changes: object) -> ShapesStep:
    return ShapesStep(**({"count": 30, "heldout": 10, "sizes": ((64, 64), (80, 112))} | changes))


def test_manifest_names_what_the_shards_hold(tmp_path: Path) -> None:
    run_shapes(small_step(), tmp_path, Silent())
    manifest = read_manifest(tmp_path)
    assert [len(manifest.split("train")), len(manifest.split("heldout"))] == [30, 10]
    assert manifest.label_names == LABELS
    for record in manifest.records[::7]:
        with tarfile.open(tmp_path / record.path) as tar:
            stem = str(record.member).removesuffix(".png")
            data = {end: tar.extractfile(f"{stem}.{end}").read() for end in ("png", "txt", "json")}  # type: ignore[union-attr]
        picture = np.asarray(Image.open(io.BytesIO(data["png"])))
        assert picture.shape == (record.height, record.width, 3)
        scene = scene_from_meta(record.meta, record.height, record.width)
        assert np.abs(picture.astype(int) - render_scene(scene, *picture.shape[:2])).max() <= 4
        assert data["txt"].decode() == record.caption == scene_caption(scene)
        assert json.loads(data["json"]) == record.meta
        assert record.label == scene.label


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_run_keeps_whole_shards_and_ends_the_same(tmp_path: Path) -> None:
    run_shapes(small_step(), tmp_path / "a", Silent())
    run_shapes(small_step(), tmp_path / "b", Silent())
    # As if killed between two shards: no manifest, no card, one shard missing.
    for name in ("card.json", "manifest.jsonl", "shards/heldout-00000.tar"):
        (tmp_path / "b" / name).unlink()
    kept = tmp_path / "b/shards/train-00000.tar"
    before = kept.stat().st_mtime_ns
    run_shapes(small_step(), tmp_path / "b", Silent())
    assert kept.stat().st_mtime_ns == before
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_shards_of_other_options_are_not_kept(tmp_path: Path) -> None:
    run_shapes(small_step(seed=1), tmp_path / "a", Silent())
    run_shapes(small_step(seed=2), tmp_path / "a", Silent())
    run_shapes(small_step(seed=2), tmp_path / "b", Silent())
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("size", [(16, 16), (64, 200)])
def test_unsuitable_size_is_the_users_mistake(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]}"):
        run_shapes(small_step(sizes=(size,)), tmp_path, Silent())
