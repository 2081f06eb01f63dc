"""Laws of the pace of a training: counted FLOPs, shares of measured time, and what the progress line says."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from stores import write_tiny_store
from test_validation import MODEL, make_step, rows
from torch.utils.flop_counter import FlopCounterMode

from pixart_cli.console import RichProgress
from pixart_core.progress import Silent
from pixart_core.recipe.gpus import GPUS, gpu_named
from pixart_core.training import pace as pace_module
from pixart_core.training.initial import read_folder
from pixart_core.training.log import without_clock
from pixart_core.training.loop import run_training
from pixart_core.training.pace import Pace, batch_flops, duration, note
from pixart_core.training.run import open_run
from pixart_core.training.state import Counters


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_tiny_store(tmp_path / "features")


@pytest.mark.parametrize("conditioning", ["text", "class"])
def test_the_flops_of_a_batch_are_those_that_torch_counts(
    tmp_path: Path, store: Path, conditioning: str
) -> None:
    model = MODEL.model_copy(update={"conditioning": conditioning})
    run = open_run(make_step(store, model=model), tmp_path / "run", Silent(), read_folder)
    for batch in run.micro_batches():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run.loss_fn(run.model, batch)
        assert batch_flops(run.model.config, batch) == 3 * counter.get_total_flops()


def test_the_row_holds_what_the_clock_measured(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(pace_module, "perf_counter", lambda: now[0])
    run = open_run(make_step(store, price=3.0), tmp_path / "run", Silent(), read_folder)
    pace = Pace(run.step, run.model.config, torch.device("cpu"), processes=2)
    pace.gpu = GPUS["A100"]
    batches = list(run.micro_batches())

    def slowly() -> Any:
        for batch in batches:
            now[0] += 0.5  # reading
            yield batch

    for _ in range(4):
        with pace.stepping():
            for _ in pace.waiting(slowly()):
                now[0] += 1.5  # computing
        now[0] += 1.0  # logging, saving, validating
    row = pace.row(Counters(step=4, seconds=7200.0))
    steps, each = 4, 2 * (0.5 + 1.5)
    flops = sum(batch_flops(run.model.config, batch) for batch in batches)
    assert row == {
        "images_per_second": run.step.global_batch_size / each,
        "data_wait": 0.25,
        "tflops": pytest.approx(flops / each / 1e12, rel=1e-3),
        "eta_seconds": (run.step.max_train_steps - steps) * (each + 1.0),
        "mfu": pytest.approx(flops / each / 312e12, rel=1e-3),
        "usd": 3.0 * 2 * 2,
    }
    with pace.stepping():
        now[0] += each
    assert pace.row(Counters(step=5))["data_wait"] == 0  # a new row begins


def test_rows_have_a_pace_and_are_otherwise_equal(tmp_path: Path, store: Path) -> None:
    for name in ("a", "b"):
        run_training(make_step(store, log_every=1), tmp_path / name, Silent())
    a, b = (rows(tmp_path / name, "log.jsonl") for name in ("a", "b"))
    assert all({"images_per_second", "data_wait", "tflops", "eta_seconds"} <= row["pace"].keys() for row in a)
    assert [without_clock(row) for row in a] == [without_clock(row) for row in b]
    assert "pace" not in without_clock(a[0])


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("", None),
    ],
)
def test_a_peak_is_only_known_of_gpus_of_the_table(device: str, gpu: str | None) -> None:
    assert gpu_named(device) == (None if gpu is None else GPUS[gpu])


SAID = {0: "0 s", 89: "89 s", 90: "2 min", 3600: "1 h 00 min", 90_061: "25 h 01 min", 200_000: "2 d 7 h"}


@pytest.mark.parametrize("seconds", SAID)
def test_lengths_of_time_are_said_shortly(seconds: float) -> None:
    assert duration(seconds) == SAID[seconds]  # type: ignore[index]


ROW = {"step": 10, "loss": 0.1234, "lr": 2e-5, "seconds": 4.0}
PACE = {"images_per_second": 1234.0, "data_wait": 0.02, "tflops": 400.0, "mfu": 0.4044, "eta_seconds": 4000.0}


def test_the_progress_line_names_everything() -> None:
    line = note(ROW | {"pace": PACE | {"usd": 12.5}})
    told = "loss 0.1234, lr 2e-05, 1,234 images/s, data wait 2%, MFU 40.4%, 12.50 USD, 1 h 07 min left"
    assert line == told
    without_peak = {name: value for name, value in PACE.items() if name != "mfu"}
    assert "400 TFLOP/s" in note(ROW | {"pace": without_peak})
    assert note(ROW) == note(ROW | {"pace": {}})


@pytest.mark.parametrize("width", [50, 80, 160])
def test_a_terminal_shows_the_whole_note_below_its_bar(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with RichProgress(console) as progress:
        progress.start("train stage2", 100)
        progress.advance("train stage2", 10, note(ROW | {"pace": PACE | {"usd": 12.5}}))
        shown = console.render_lines(progress._bars.get_renderable())  # type: ignore[union-attr]
    lines = ["".join(segment.text for segment in line) for line in shown]
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    for part in ("10/100", "loss 0.123", "data wait 2%", "MFU 40.4%", "12.50 USD", "1 h 07 min left"):
        assert part in text
    assert "-:--:--" not in text  # one time left, not two
