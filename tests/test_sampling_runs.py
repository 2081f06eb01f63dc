"""Sampling that is killed anywhere, or shared by several processes, ends with the bytes of a whole run."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from folders import contents
from tiny_pipelines import write_tiny_pipeline

from pixart_core.artifacts import publish
from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.samples import read_samples
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling import sample
from pixart_core.sampling.sample import run_sampling

# Each a launch on the same output: killed when about to write that many images, or at calls of that code.
KILLED: dict[str, list[int | list[Any]]] = {
    "beginning": [[3, "mark.py"], [4, "publish.py"], [2, "plan.py", "todo"], 1],
    # Of the first batches, one image and then three, the first launch leaves two images.
    "drawing": [
        3, 2, [1, "publish.py", "staged_file", ["c_call"]], [3, "publish.py", "staged_file", ["c_call"]],
        [1, "pathlib.py", "replace", ["call"]], [2, "pathlib.py", "replace", ["c_call"]],
        [2, "pathlib.py", "replace", ["return"]],
    ],
    "finishing": [
        [1, "sheet.py"], [1, "gallery.py"], [1, "samples.py", "finish_samples"], [1, "card.py", "write"],
    ],
}  # fmt: skip
Launch = tuple[str, int, int | list[Any] | None]
LAUNCHES: list[Launch] = [
    *((name, 1, kill) for name, kills in KILLED.items() for kill in [*kills, None, None]),
    ("two", 2, None), ("three", 3, None),
    ("shared", 3, 5), ("shared", 2, 3), ("shared", 1, None),
]  # fmt: skip
Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def launched(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """(folder, results of the launches on each output in it); see sampling_launches.py."""
    folder = tmp_path_factory.mktemp("launches")
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt": f"{number} red squares", "images_per_prompt": 1 + number % 2} for number in range(6)]
    rows += [{"prompt": "a red circle", "height": 24, "width": 16}, {"prompt": "two", "guidance_scale": 1}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = SampleStep(
        checkpoint=str(pipeline), prompts_file=str(prompts), scheduler="sa-solver", num_inference_steps=2,
        batch_size=3, device="cpu",
    )  # fmt: skip
    script = Path(__file__).with_name("sampling_launches.py")
    done = subprocess.run(
        [sys.executable, str(script), step.model_dump_json(), str(folder), json.dumps(LAUNCHES)],
        capture_output=True, text=True, cwd=script.parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                          "PYTHONPATH": str(script.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return folder, results


@pytest.mark.parametrize("phase", KILLED)
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    launched: tuple[Path, Results], phase: str
) -> None:
    folder, results = launched[0], launched[1][phase]
    assert [result["exit_codes"] for result in results] == [*([[-9]] * len(KILLED[phase])), [0], [0]]
    there: set[str] = set()
    for result in results[:-1]:
        for batch in result["drawn"]:
            assert not set(batch) <= there  # a batch that is there whole is not drawn again
        assert there <= set(result["there"])  # what is there stays
        there = set(result["there"])
    assert results[-1]["drawn"] == []
    assert contents(folder / phase) == contents(folder / "whole")


def test_kills_fell_before_within_and_after_the_drawing(launched: tuple[Path, Results]) -> None:
    images = len(read_samples(launched[0] / "whole"))
    there = {name: [len(result["there"]) for result in launched[1][name][:-2]] for name in KILLED}
    assert set(there["beginning"]) == {0}
    assert there["drawing"][:2] == [2, 3]
    assert {0, images}.isdisjoint(there["drawing"])
    assert set(there["finishing"]) == {images}
    first, second = launched[1]["drawing"][:2]
    assert first["drawn"][1] == second["drawn"][0]  # drawn whole again, though one of its images was there
    assert len(set(second["drawn"][0]) & set(first["there"])) == 1


def test_processes_share_whole_batches_and_another_number_goes_on_after_a_kill(
    launched: tuple[Path, Results],
) -> None:
    folder, results = launched
    whole = sorted(record.file for record in read_samples(folder / "whole"))
    for name, count in (("two", 2), ("three", 3)):
        (result,) = results[name]
        assert result["exit_codes"] == [0] * count
        assert sorted(file for batch in result["drawn"] for file in batch) == whole  # each once
        assert contents(folder / name) == contents(folder / "whole")
    assert [result["exit_codes"] for result in results["shared"]] == [[-9] * 3, [-9] * 2, [0]]
    assert contents(folder / "shared") == contents(folder / "whole")


def make_step(pipeline: Path, **changes: Any) -> SampleStep:
    options = {"checkpoint": str(pipeline), "prompts": ("a", "b", "c"), "num_inference_steps": 1}
    return SampleStep(**(options | {"device": "cpu", "batch_size": 2} | changes))


def test_a_full_disk_is_one_clear_error_and_loses_nothing(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = make_step(pipeline)
    run_sampling(step, tmp_path / "whole", Silent())
    fsync, calls = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(calls) == 2:  # the mark, an image, and then
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(publish.os, "fsync", full)
    with pytest.raises(PixartError, match=r"cannot write .*000001\.png: No space left on device"):
        run_sampling(step, tmp_path / "out", Silent())
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["000000.png"]
    run_sampling(step, tmp_path / "out", Silent())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("what", ["folder", "cut off", "a photo", "another's"])
def test_what_has_an_images_name_and_is_none_is_named_and_stays(
    pipeline: Path, tmp_path: Path, what: str
) -> None:
    step = make_step(pipeline)
    run_sampling(step, tmp_path, Silent())
    (tmp_path / "card.json").unlink()
    path = tmp_path / "images/000001.png"
    png = path.read_bytes()
    path.unlink()
    if what == "folder":
        path.mkdir()
    else:
        other = (tmp_path / "images/000002.png").read_bytes()
        path.write_bytes({"cut off": png[:-20], "a photo": b"a photo", "another's": other}[what])
    with pytest.raises(UserError, match=r"000001\.png is damaged, or not of this run: remove it"):
        run_sampling(step, tmp_path, Silent())
    assert path.is_dir() or path.read_bytes() != png
    path.rmdir() if what == "folder" else path.unlink()
    run_sampling(step, tmp_path, Silent())
    assert path.read_bytes() == png


def test_two_runs_never_write_into_one_set(pipeline: Path, tmp_path: Path) -> None:
    with only_launch(tmp_path), pytest.raises(UserError, match="another run is writing to it"):
        run_sampling(make_step(pipeline), tmp_path, Silent())
    assert not (tmp_path / "images").exists()


def test_prompts_that_changed_since_are_refused(pipeline: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n")
    step = make_step(pipeline, prompts=(), prompts_file=str(prompts))
    run_sampling(step, tmp_path / "out", Silent())
    before = contents(tmp_path / "out")
    prompts.write_text("a\nb changed\n")
    with pytest.raises(UserError, match="samples of another checkpoint or with other options"):
        run_sampling(step, tmp_path / "out", Silent())
    assert contents(tmp_path / "out") == before


def test_an_image_that_goes_before_the_end_is_an_error_and_no_card(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "write_sheet", lambda folder, _: (folder / "images/000001.png").unlink())
    with pytest.raises(PixartError, match=r"000001\.png is gone"):
        run_sampling(make_step(pipeline), tmp_path, Silent())
    assert not (tmp_path / "card.json").exists()
    monkeypatch.undo()
    run_sampling(make_step(pipeline), tmp_path, Silent())
    assert len(read_samples(tmp_path)) == 3
