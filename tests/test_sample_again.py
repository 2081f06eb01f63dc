"""Laws of reproduction: an image tells how it was made, can be made again, and says if not."""

import dataclasses
import importlib.metadata
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import pixart_json
from drawn_images import sample
from PIL import Image, PngImagePlugin
from tiny_pipelines import write_tiny_pipeline

from pixart_core.artifacts.provenance import Provenance, Settings
from pixart_core.artifacts.samples import read_samples
from pixart_core.errors import UserError
from pixart_core.sampling.again import check_image


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def image(pipeline, tmp_path_factory) -> Path:
    return sample(pipeline, tmp_path_factory.mktemp("samples") / "set")


def rewrite(image: Path, to: Path, *, change_pixel: int = 0, **told) -> Path:
    """A copy of `image` with its first channel value moved by `change_pixel`, and other metadata."""
    with Image.open(image) as opened:
        pixels, text = np.array(opened), json.loads(opened.text["pixart"])
    value = int(pixels[0, 0, 0])
    pixels[0, 0, 0] = value + change_pixel if value + change_pixel < 256 else value - change_pixel
    info = PngImagePlugin.PngInfo()
    info.add_itxt("pixart", json.dumps(text | told))
    Image.fromarray(pixels).save(to, pnginfo=info)
    return to


def test_png_and_samples_tell_how_an_image_was_made(pipeline, tmp_path) -> None:
    image = sample(pipeline, tmp_path / "set", scheduler="sa-solver", guidance_interval=(0.1, 0.9))
    with Image.open(image) as opened:
        told = json.loads(opened.text["pixart"])
    row = json.loads((tmp_path / "set/samples.jsonl").read_text().splitlines()[1])
    row.pop("meta")
    assert told == row
    expected = {
        "prompt": "two blue squares",
        "negative_prompt": "blue",
        "seed": read_samples(tmp_path / "set")[1].seed,
        "scheduler": "sa-solver",
        "num_inference_steps": 4,
        "guidance_scale": 4.5,
        "guidance_interval": [0.1, 0.9],
        "height": 16,
        "width": 16,
        "dtype": "fp32",
        "device": "cpu",
        **{f"{name}_version": importlib.metadata.version(name) for name in ("diffusers", "transformers")},
    }
    assert {name: told[name] for name in expected} == expected
    assert told["torch_version"].split("+")[0] == importlib.metadata.version("torch").split("+")[0]
    assert not {field.name for field in dataclasses.fields(Settings)} - told.keys()


def test_equal_runs_beside_each_other_write_equal_bytes(pipeline, tmp_path) -> None:
    one, two = (sample(pipeline, tmp_path / name).parents[1] for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 8
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


@pytest.mark.parametrize("scheduler", ["dpm-solver", "sa-solver", "iddpm", "ddim", "lcm"])
def test_an_image_of_a_batch_is_made_again_from_itself_alone(pipeline, tmp_path, scheduler) -> None:
    image = sample(pipeline, tmp_path / "set", scheduler=scheduler, guidance_interval=(0.0, 0.8))
    result = check_image(image, None, "cpu", 1)
    assert result["same"]
    assert result["notes"] == []
    assert Path(result["checkpoint"]).samefile(pipeline)


def test_the_command_reports_and_leaves_nothing(image, pipeline, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code, result, _ = pixart_json(capsys, "sample", "--from", image, "--check", "--device", "cpu")
    assert (code, result["same"]) == (0, True)
    moved = shutil.copy(image, tmp_path / "moved.png")
    code, result, error = pixart_json(capsys, "sample", "--from", moved, "--check")
    assert code == 2
    assert "give --checkpoint" in error
    code, result, _ = pixart_json(
        capsys, "sample", "--from", moved, "--check", "--checkpoint", pipeline, "--device", "cpu"
    )
    assert (code, result["same"]) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["moved.png"]


def test_a_changed_pixel_is_found_measured_and_fails(image, pipeline, tmp_path, capsys) -> None:
    exact = rewrite(image, tmp_path / "exact.png")
    changed = rewrite(image, tmp_path / "changed.png", change_pixel=60)
    options = ("--check", "--checkpoint", pipeline, "--device", "cpu")
    code, result, error = pixart_json(capsys, "sample", "--from", changed, *options)
    assert code == 1
    assert "comes out differently" in error
    assert abs(result["max_difference"] - 60) <= 1
    # One of 768 values is off by about 60; the others by rounding at most.
    assert result["psnr"] == pytest.approx(10 * math.log10(255**2 * 768 / 60**2), abs=0.9)
    assert pixart_json(capsys, "sample", "--from", changed, *options, "--tolerance", "61")[0] == 0
    assert pixart_json(capsys, "sample", "--from", exact, *options)[0] == 0


def test_other_versions_are_told(image, pipeline, tmp_path) -> None:
    older = rewrite(image, tmp_path / "older.png", torch_version="2.1.0", device="cuda")
    result = check_image(older, str(pipeline), "cpu", 1)
    assert result["same"]
    assert sorted(note.split(",")[0] for note in result["notes"]) == [
        "made with device cuda",
        "made with torch 2.1.0",
    ]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"seed": "x"}, "metadata is damaged .image_seeds"),
        ({"seed": -1}, "metadata is damaged .image_seeds"),
        ({"scheduler": "euler"}, "metadata is damaged .scheduler"),
        ({"scheduler": None}, "does not tell its scheduler"),
        ({"height": 20}, "has 16x16 pixels, its metadata says 20x16"),
        ({"weights_hash": "0" * 16}, "other weights"),
    ],
)
def test_metadata_that_cannot_be_is_named(image, pipeline, tmp_path, told, message) -> None:
    broken = rewrite(image, tmp_path / "broken.png", **told)
    with pytest.raises(UserError, match=message):
        check_image(broken, str(pipeline), "cpu", 1)


def test_files_that_tell_nothing_are_refused(image, tmp_path) -> None:
    Image.open(image).convert("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:400])
    info = PngImagePlugin.PngInfo()
    info.add_itxt("pixart", "[1")
    Image.open(image).save(tmp_path / "torn.png", pnginfo=info)
    for name, message in (
        ("a.jpg", "does not tell how it was made"),
        ("cut.png", "cannot be read as an image"),
        ("torn.png", "metadata is damaged"),
        ("none.png", "No such file"),
    ):
        with pytest.raises(UserError, match=message):
            Provenance.read(tmp_path / name)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_an_image_is_drawn_again_with_changes(image, pipeline, tmp_path, capsys) -> None:
    def again(name: str, *changes: str) -> tuple[np.ndarray, dict]:
        code, _, error = pixart_json(
            capsys, "sample", "--from", image, "--output", tmp_path / name, "--device", "cpu", *changes
        )
        assert code == 0, error
        row = (tmp_path / name / "samples.jsonl").read_text()
        return pixels(tmp_path / name / "images/000000.png"), json.loads(row)

    same, told = again("same")
    before = Provenance.read(image).record
    assert np.abs(same - pixels(image)).max() <= 1
    kept = ("prompt", "negative_prompt", "seed", "height", "width", "num_inference_steps", "guidance_scale")
    assert {name: told[name] for name in kept} == {name: getattr(before, name) for name in kept}

    weaker, told = again("weaker", "--guidance-scale", "2")
    assert (told["seed"], told["guidance_scale"], told["prompt"]) == (before.seed, 2.0, before.prompt)
    # The same as if that had been asked for in the first place.
    sample(pipeline, tmp_path / "asked", guidance_scale=2.0)
    assert np.abs(weaker - pixels(tmp_path / "asked/images/000001.png")).max() <= 1
    assert np.abs(weaker - same).max() > 8

    assert again("seed", "--seed", "9")[1]["seed"] != before.seed
    assert again("set", "--set", "seed=9")[1]["seed"] != before.seed
    assert again("other", "red")[1]["prompt"] == "red"
    assert again("solver", "--scheduler", "sa-solver")[1]["num_inference_steps"] == 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "--checkpoint", "x"], "--check needs --from"),
        (["a fox"], "give --checkpoint, or --from IMAGE"),
        (["--from", "IMAGE", "--check", "--guidance-scale", "2"], "leave out guidance_scale"),
        (["--from", "IMAGE", "--check", "--set", "seed=2"], "leave out seed=2"),
        (["--from", "none.png"], "none.png: cannot be read"),
    ],
)
def test_mistakes_with_from_are_told(image, capsys, arguments, message) -> None:
    code, _, error = pixart_json(
        capsys, "sample", *(str(image) if word == "IMAGE" else word for word in arguments)
    )
    assert code == 2
    assert message in error


def test_given_seeds_are_those_of_the_images(pipeline, tmp_path) -> None:
    sample(pipeline, tmp_path / "set", image_seeds=(5, 6))
    assert [record.seed for record in read_samples(tmp_path / "set")][:2] == [5, 6]
