"""The quickstart's recipe, shrunk: the real chain from data to report, killed and run again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import PixArtAlphaPipeline

SMALL = [
    "data.count=60",
    "data.heldout=8",
    "data_large.count=30",
    "data_large.heldout=6",
    *(f"{stage}.max_train_steps=6" for stage in ("stage1", "stage2", "stage3")),
    *(f"{stage}.checkpointing_steps=2" for stage in ("stage1", "stage2", "stage3")),
    *(f"{stage}.global_batch_size=4" for stage in ("stage1", "stage2", "stage3")),
    *(f"{stage}.micro_batch_size=4" for stage in ("stage1", "stage2", "stage3")),
    "stage1.model.num_layers=1",
    "samples_stage2.limit=4",
    "samples_stage3.limit=3",
    "samples_stage2.num_inference_steps=2",
    "samples_stage3.num_inference_steps=2",
    "report.bootstrap=20",
]


KILLED = """
import sys
from counted_kills import kill_at_file_operation
sign, number = sys.argv[1:3]
del sys.argv[1:3]
kill_at_file_operation(int(number), sign)
"""
RUN = """
from pixart_cli.app import main
main()
"""


def run(program: str, *arguments: str, root: Path) -> "subprocess.CompletedProcess[str]":
    tests = Path(__file__).parent
    return subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            *arguments,
            "run",
            "quickstart",
            *SMALL,
            "--output",
            str(root),
            "--json",
        ],
        capture_output=True,
        text=True,
        # One thread, so that sums are always grouped alike however busy the machine is.
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}:{tests.parent}"},
    )


def finish(root: Path) -> dict:
    done = run(RUN, root=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("whole")
    return root, finish(root)


def test_the_result_names_report_pipeline_and_metrics(whole) -> None:
    root, result = whole
    assert Path(result["report"]) == root / "report/report.html"
    assert "<html" in Path(result["report"]).read_text()[:300]
    assert Path(result["pipeline"]) == root / "pipeline"
    for scores in result["metrics"].values():
        exact = scores["shapes"]["exact"]
        assert exact["exact_minus_null"] == pytest.approx(exact["score"] - exact["null"], abs=2e-4)
        assert "frechet/pixels-8x8" in scores


def test_the_pipeline_is_an_ordinary_one(whole) -> None:
    root, _ = whole
    pipeline = PixArtAlphaPipeline.from_pretrained(root / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a small red circle on a white background",
        height=64,
        width=96,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        use_resolution_binning=False,
        clean_caption=False,
    ).images[0]
    assert image.size == (96, 64)


def test_killed_again_and_again_it_ends_the_same(whole, tmp_path) -> None:
    first, expected = whole
    for sign, number in (
        ("data/shards", 1),
        ("features/index.jsonl", 5),
        ("stage1/log.jsonl", 2),
        ("stage2/checkpoints/step_00000002", 1),
        ("stage3/transformer", 1),
        ("samples_stage2/images/000000.png", 3),
    ):
        assert not (tmp_path / sign).exists()
        killed = run(KILLED + RUN, str(tmp_path / sign), str(number), root=tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert (tmp_path / sign).exists()
    result = finish(tmp_path)
    assert result["metrics"] == expected["metrics"]
    weights = "transformer/diffusion_pytorch_model.safetensors"
    for step in ("stage1", "stage2", "stage3", "pipeline"):
        assert (tmp_path / step / weights).read_bytes() == (first / step / weights).read_bytes(), step


def test_a_second_run_does_nothing_and_a_change_reaches_only_what_depends_on_it(whole) -> None:
    root, expected = whole
    logs = {step: (root / step / "log.jsonl").stat().st_mtime_ns for step in ("stage1", "stage2")}
    again = finish(root)
    assert again["metrics"] == expected["metrics"]
    assert {step: (root / step / "log.jsonl").stat().st_mtime_ns for step in logs} == logs
