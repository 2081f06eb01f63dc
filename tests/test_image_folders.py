"""Any folder of images can be evaluated: distances need no prompts, and what needs them says so."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.layout import read_any_samples
from pixart_core.evaluation.evaluate import run_evaluation
from pixart_core.progress import Silent
from pixart_core.recipe.evaluate import EvaluateStep


def save_images(folder: Path, count: int, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    (folder / "more").mkdir(parents=True)
    for number in range(count):
        name = f"more/{number:02d}.jpg" if number % 2 else f"{number:02d}.png"
        Image.fromarray(random.integers(0, 256, (16, 24, 3), np.uint8)).save(folder / name)
    return folder


def test_images_are_taken_by_their_paths_with_the_prompts_beside_them(tmp_path) -> None:
    folder = save_images(tmp_path / "them", 3)
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails/00.png").write_bytes(b"no image")
    (folder / "notes.md").write_text("no image")
    samples = read_any_samples("them", folder)
    assert [(s.file, s.height, s.width, s.prompt) for s in samples.samples] == [
        ("00.png", 16, 24, ""),
        ("02.png", 16, 24, ""),
        ("more/01.jpg", 16, 24, ""),
    ]
    for image in ("00", "02", "more/01"):
        (folder / f"{image}.txt").write_text(f"prompt of {image}\n")
    assert read_any_samples("them", folder).prompts == ["prompt of 00", "prompt of 02", "prompt of more/01"]


def test_distances_of_two_folders_are_those_of_the_same_images_in_another_order(tmp_path) -> None:
    """diffusers' scripts and others leave plain folders."""
    ours, real = save_images(tmp_path / "ours", 6), save_images(tmp_path / "real", 6, seed=1)
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(ours.rglob("*.*g"), reverse=True)):
        (renamed / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    step = EvaluateStep(
        bench=("frechet",),
        samples={"ours": str(ours), "renamed": str(renamed), "real": str(real)},
        reference=str(real),
    )
    metrics = run_evaluation(step, tmp_path / "report", Silent())["metrics"]
    (value,), (other,), (none,) = (
        [result["value"] for result in metrics[name].values()] for name in ("ours", "renamed", "real")
    )
    assert value == pytest.approx(other, rel=1e-6)
    assert abs(none) < 1e-3 < value


@pytest.mark.parametrize("bench", ["clip", "compbench", "shapes"])
def test_a_bench_that_asks_about_prompts_says_that_there_are_none(tmp_path, bench) -> None:
    step = EvaluateStep(bench=(bench,), samples={"them": str(save_images(tmp_path / "them", 2))})
    with pytest.raises(
        UserError, match=rf"without prompts, which bench {bench} needs: put each prompt into a"
    ):
        run_evaluation(step, tmp_path / "report", Silent())


def test_half_the_prompts_damaged_images_and_empty_folders_are_mistakes(tmp_path) -> None:
    folder = save_images(tmp_path / "them", 2)
    (folder / "00.txt").write_text("one")
    with pytest.raises(UserError, match=r"01.jpg has no 01.txt beside it, other images have one"):
        read_any_samples("them", folder)
    (folder / "00.txt").unlink()
    (folder / "00.png").write_bytes((folder / "00.png").read_bytes()[:20])
    with pytest.raises(UserError, match=r"00.png: no image that can be read"):
        read_any_samples("them", folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        read_any_samples("them", tmp_path / "empty")


@pytest.mark.parametrize("mark", ["sampling.json", "samples.jsonl"])
def test_an_unfinished_sample_set_is_no_plain_folder(tmp_path, mark) -> None:
    folder = save_images(tmp_path / "them", 2)
    (folder / mark).write_text("begun")
    with pytest.raises(UserError, match=r"unfinished|not finished|card"):
        read_any_samples("them", folder)
