"""`pixart sample` that starts its processes itself: how many, and what is left when one of them dies."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import contents
from tiny_pipelines import write_tiny_pipeline

from pixart_cli import launching, runners
from pixart_core.artifacts.samples import read_samples
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.load import step_from_options
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling import sample
from pixart_core.sampling.sample import run_sampling

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "ACCELERATE_MIXED_PRECISION")
PIXART = f"""
import sys
from pixart_cli import launching
launching.WORKER = [{str(Path(__file__).with_name("faulty_sampler.py"))!r}]
from pixart_cli.app import main
main(sys.argv[1:])
"""
PROMPTS = ("a red circle", "two blue squares", "red", "blue", "white")
OPTIONS: dict[str, Any] = {"batch_size": 2, "num_inference_steps": 1, "images_per_prompt": 2}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


def make_step(pipeline: Path, **changes: Any) -> SampleStep:
    return SampleStep(**({"checkpoint": str(pipeline), "prompts": PROMPTS} | OPTIONS | changes))


def pixart(*args: str, fault: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    environment |= {"ACCELERATE_USE_CPU": "true", "FAULT": fault, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", PIXART, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_a_process_that_dies_ends_all_with_one_line_and_its_images_stay(
    pipeline: Path, tmp_path: Path
) -> None:
    sets = [f"{name}={value}" for name, value in OPTIONS.items()]
    args = ["sample", "--checkpoint", str(pipeline), *PROMPTS, "--processes", "2", "--json"]
    args += ["--output", str(tmp_path / "out"), *(word for text in sets for word in ("--set", text))]

    killed = pixart(*args, fault="1:2")
    errors = [line for line in killed.stderr.splitlines() if line.startswith("pixart: ")]
    assert killed.returncode == 1
    assert killed.stdout == ""
    assert len(errors) == 1, killed.stderr
    assert "rank 1 of 2 was ended by SIGKILL" in errors[0]
    assert "work so far is kept: run the same command to continue" in errors[0]
    assert not (tmp_path / "out/card.json").exists()
    # Rank 1 has the second batch, of images 2 and 3, and wrote one of them.
    assert (tmp_path / "out/images/000002.png").is_file()
    kept = contents(tmp_path / "out/images")

    ended = pixart(*args, fault="none:0")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["images"] == 10
    assert sum("2 processes on this machine" in line for line in ended.stderr.splitlines()) == 1
    assert sum("images are there already" in line for line in ended.stderr.splitlines()) == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as they had
    try:
        run_sampling(make_step(pipeline), tmp_path / "alone", Silent())
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert kept.items() <= contents(tmp_path / "alone/images").items()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Sets how many GPUs there are; gives the numbers of processes that are started from then on."""
    counts: list[int] = []
    for variable in LAUNCHED:
        monkeypatch.delenv(variable, raising=False)

    def launch(command: str, step: SampleStep, output: Path, count: int, progress: object) -> dict[str, str]:
        assert (command, launching.COMMANDS[command].options) == ("sample", type(step))
        counts.append(count)
        return {"output": str(output)}

    monkeypatch.setattr(launching, "launch", launch)

    def gpus(count: int) -> list[int]:
        monkeypatch.setattr(launching, "visible_gpus", lambda: count)
        return counts

    return gpus


@pytest.mark.parametrize(
    ("gpus", "changes", "expected"),
    [
        (8, {}, [5]),  # there are five batches
        (3, {}, [3]),
        (8, {"device": "cuda"}, [5]),
        (8, {"processes": 7}, [7]),
        (0, {"processes": 2}, [2]),
        (0, {}, []),
        (1, {}, []),
        (8, {"device": "cpu"}, []),
        (8, {"processes": 1}, []),
        (8, {"limit": 1}, []),
    ],
)
def test_as_many_processes_as_gpus_that_there_are_batches_for(
    pipeline: Path,
    tmp_path: Path,
    started: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    changes: dict[str, Any],
    expected: list[int],
) -> None:
    here: list[Path] = []
    monkeypatch.setattr(sample, "run_sampling", lambda step, output, progress: here.append(output))
    counts = started(gpus)
    runners.RUNNERS["sample"](make_step(pipeline, **changes), tmp_path / "out", Silent())
    assert counts == expected
    assert here == ([] if expected else [tmp_path / "out"])


def test_batches_that_are_there_need_no_process(
    pipeline: Path, tmp_path: Path, started: Callable[[int], list[int]]
) -> None:
    run_sampling(make_step(pipeline), tmp_path, Silent())
    counts = started(8)
    for number in (0, 9):
        (tmp_path / f"images/00000{number}.png").unlink()
    runners.RUNNERS["sample"](make_step(pipeline), tmp_path, Silent())
    assert counts == [2]


def test_more_processes_than_gpus_and_than_a_launcher_started_are_refused(
    pipeline: Path, tmp_path: Path, started: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started(2)
    with pytest.raises(UserError, match=r"processes: 3, but this machine shows 2 GPU"):
        runners.RUNNERS["sample"](make_step(pipeline, processes=3), tmp_path, Silent())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="processes: 3, but the launcher started 2"):
        runners.RUNNERS["sample"](make_step(pipeline, processes=3), tmp_path, Silent())


def test_how_many_processes_there_are_is_in_no_card(pipeline: Path, tmp_path: Path) -> None:
    flags = {"prompts": "PROMPT"}
    values = {"checkpoint": str(pipeline), "prompts": PROMPTS}
    step = step_from_options(SampleStep, values, ["processes=1", "limit=1"], flags)
    run_sampling(step, tmp_path / "one", Silent())
    assert len(read_samples(tmp_path / "one")) == 1
    run_sampling(step.model_copy(update={"processes": None}), tmp_path / "one", Silent())
    assert "processes" not in (tmp_path / "one/card.json").read_text()
