"""Laws of trackers: every logged step arrives once, whatever happens to the run; none of them can end it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from stores import write_tiny_store
from test_validation import VALIDATION, Stop, make_step, rows

from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.training import trackers
from pixart_core.training.loop import run_training


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_tiny_store(tmp_path / "features")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline="")))


def test_csv_files_hold_the_rows_of_the_logs(tmp_path: Path, store: Path) -> None:
    step = make_step(store, report_to=("csv",), validation=VALIDATION, log_every=2)
    with pytest.raises(RuntimeError, match="plug"):
        run_training(step, tmp_path / "run", Stop(5))  # logged at 4, saved at 3
    run_training(step.model_copy(update={"price": 3.0}), tmp_path / "run", Silent())  # a new column: usd
    logged, written = rows(tmp_path / "run", "log.jsonl"), table(tmp_path / "run/log.csv")
    assert [int(row["step"]) for row in written] == [2, 4, 6, 8, 10]
    for row, text in zip(logged, written, strict=True):
        plain = {name: value for name, value in row.items() if name != "pace"} | row["pace"]
        assert {name: float(value) for name, value in text.items() if value} == pytest.approx(plain)
    assert written[0]["usd"] == ""
    assert float(written[-1]["usd"]) >= 0
    validated = table(tmp_path / "run/validation.csv")
    assert [(row["step"], row["weights"]) for row in validated] == [
        (str(number), weights) for number in (4, 8, 10) for weights in ("ema", "raw")
    ]
    expected = rows(tmp_path / "run")[0]["bands"]
    bands = [float(validated[0][band]) for band in ("0-249", "250-499", "500-749", "750-999")]
    assert bands == expected


class Recorder(GeneralTracker):
    """A tracker of accelerate's kind that remembers."""

    name = "wandb"
    requires_logging_directory = False
    made: list["Recorder"] = []  # noqa: RUF012

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        self.options = {"project": run_name} | options
        self.config: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self.made.append(self)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setitem(trackers.PACKAGES, "wandb", (("json",), "wandb"))
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder.made


def test_a_tracker_gets_every_row_and_a_continued_run_keeps_its_id(
    tmp_path: Path, store: Path, recorded: list[Recorder]
) -> None:
    step = make_step(store, report_to="wandb", validation=VALIDATION, tracker_project_name="foxes")
    with pytest.raises(RuntimeError, match="plug"):
        run_training(step, tmp_path / "run", Stop(6))
    run_training(step, tmp_path / "run", Silent())
    first, second = recorded
    assert first.options["project"] == "foxes"
    assert first.options["id"] == second.options["id"]
    assert second.options["resume"] == "allow"
    assert (first.finished, second.finished) == (False, True)
    assert first.config["optimizer.kind"] == "muon"
    assert all(isinstance(value, int | float | str) for value in first.config.values())
    losses = {row["step"]: row["loss"] for row in rows(tmp_path / "run", "log.jsonl")}
    told = {number: values["train/loss"] for number, values in second.logged if "train/loss" in values}
    assert told == {number: losses[number] for number in (10,)}
    validated = [number for number, values in second.logged if "validation/ema" in values]
    assert validated == [8, 10]
    values = second.logged[-1][1]
    assert {"pace/images_per_second", "train/lr", "validation_ema/0-249", "validation/raw"} <= values.keys()
    assert values["validation/ema"] == rows(tmp_path / "run")[-2]["loss"]


def test_a_package_that_is_missing_is_told_before_anything_is_trained(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "aim", (("no_such_module_at_all",), "aim"))
    with pytest.raises(UserError, match="pip install aim"):
        run_training(make_step(store, report_to=["csv", "aim"]), tmp_path / "run", Silent())
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("broken", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_ends_nothing(
    tmp_path: Path, store: Path, recorded: list[Recorder], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to wandb")

    monkeypatch.setattr(Recorder, broken, fail)
    said: list[str] = []
    listener = Silent()
    listener.say = said.append  # type: ignore[method-assign]
    run_training(make_step(store, report_to="wandb", log_every=1), tmp_path / "run", listener)
    assert [line for line in said if "wandb" in line] == [
        "report_to: wandb failed (no route to wandb); the training goes on"
    ]
    assert (tmp_path / "run/card.json").is_file()


def test_tensorboard_shows_every_step_once_after_a_crash(tmp_path: Path, store: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    step = make_step(store, report_to="tensorboard", log_every=1)
    with pytest.raises(RuntimeError, match="plug"):
        run_training(step, tmp_path / "run", Stop(5))
    run_training(step, tmp_path / "run", Silent())
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    seen = [(event.step, event.value) for event in events.Scalars("train/loss")]
    losses = [(row["step"], row["loss"]) for row in rows(tmp_path / "run", "log.jsonl")]
    assert [number for number, _ in seen] == [number for number, _ in losses] == list(range(1, 11))
    assert [value for _, value in seen] == pytest.approx([loss for _, loss in losses])


def test_wandb_offline_gets_the_run(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_training(make_step(store, report_to="wandb", log_every=1), tmp_path / "run", Silent())
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert json.loads((tmp_path / "run/trackers.json").read_text())["id"]
