"""Where log rows go besides `log.jsonl`: CSV files, which need nothing, and accelerate's trackers."""

import csv
import importlib.util
import io
import itertools
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixart_core.artifacts.checkpoint import LOG
from pixart_core.artifacts.json_file import read_json
from pixart_core.artifacts.publish import write_json, write_text
from pixart_core.errors import UserError
from pixart_core.training.log import read_rows
from pixart_core.training.run import Run
from pixart_core.training.step import StepStats
from pixart_core.training.validation import VALIDATION, ValidationLoss
from pixart_core.training.validation_images import ValidationImages

RUN_ID = "trackers.json"
# Modules that accelerate's tracker of this name can work with, and what pip calls the first.
PACKAGES = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "wandb": (("wandb",), "wandb"),
    "trackio": (("trackio",), "trackio"),
    "mlflow": (("mlflow",), "mlflow"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "aim": (("aim",), "aim"),
    "clearml": (("clearml",), "clearml"),
    "dvclive": (("dvclive",), "dvclive"),
    "swanlab": (("swanlab",), "swanlab"),
}


class CsvFiles:
    """Watcher: `log.csv` and `validation.csv`, the rows of the files of the same name in JSON."""

    def __init__(self, run: Run, validation: ValidationLoss | None) -> None:
        self.log = run.output / "log.csv"
        self.validation = validation
        self.columns: list[str] = []

    def begin(self, run: Run) -> None:
        """Write anew what is kept of the log: steps that are done again shall not come twice."""
        if run.accelerator.is_main_process:
            self._rewrite(run.output)

    def after_step(self, run: Run, stats: StepStats, row: Mapping[str, Any] | None) -> None:
        """Add a row."""
        if not run.accelerator.is_main_process:
            return
        if row is not None:
            plain = plain_row(row)
            if set(plain) <= set(self.columns):
                with self.log.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self.columns, lineterminator="\n").writerow(plain)
            else:
                self._rewrite(run.output)
        if self.validation is not None and self.validation.rows:
            self._rewrite(run.output)

    def end(self, run: Run) -> None:
        """Nothing is left to do."""

    def _rewrite(self, output: Path) -> None:
        rows = [plain_row(row) for row in read_rows(output / LOG)]
        self.columns = _columns(rows)
        write_text(self.log, _csv_text(rows, self.columns))
        validated = [plain_row(row) for row in read_rows(output / VALIDATION)]
        if validated:
            write_text(output / "validation.csv", _csv_text(validated, _columns(validated)))


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `log.jsonl` or `validation.jsonl` as one value a column; bands get a column each."""
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if name == "pace":
            plain |= value
        elif name == "bands":
            plain |= dict(zip(band_names(row["edges"]), value, strict=True))
        elif name != "edges":
            plain[name] = json.dumps(value) if isinstance(value, list | dict) else value
    return plain


def band_names(edges: Sequence[int]) -> list[str]:
    """`0-99`, `100-199`, ...: the timesteps of each band."""
    return [f"{low}-{high - 1}" for low, high in itertools.pairwise(edges)]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    first = [name for name in ("step", "weights", "loss") if name in names]
    return [*first, *(name for name in names if name not in first)]


def _csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue() if rows else ""


class TrackerOf:
    """Watcher: one of accelerate's trackers, used by the first process alone.

    A run that is continued goes on in the tracker's run where the tracker can: tensorboard hides what was
    logged of the steps that are done again, wandb keeps the id (`trackers.json`) and, of those steps, the
    values that it has, which are the same.
    """

    def __init__(self, name: str, validation: ValidationLoss | None, images: ValidationImages | None) -> None:
        self.name = name
        self.validation = validation
        self.images = images
        self.tracker: Any = None

    def begin(self, run: Run) -> None:
        """Open the tracker's run.

        Raises:
            UserError: its package is not installed.
        """
        modules, package = PACKAGES[self.name]
        if not any(importlib.util.find_spec(module) for module in modules):
            raise UserError(
                f"report_to: {self.name} needs a package that is not installed: pip install {package} "
                "(csv needs none)"
            )
        if not run.accelerator.is_main_process:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        project = run.step.tracker_project_name
        if self.name == "tensorboard":  # one folder a run, not one a project
            tracker = LOGGER_TYPE_TO_CLASS[self.name](
                "tensorboard", logging_dir=run.output, **self._options(run)
            )
        elif LOGGER_TYPE_TO_CLASS[self.name].requires_logging_directory:
            tracker = LOGGER_TYPE_TO_CLASS[self.name](project, logging_dir=run.output)
        else:
            tracker = LOGGER_TYPE_TO_CLASS[self.name](project, **self._options(run))
        tracker.start()
        self.tracker = tracker
        if not run.counters.step:
            tracker.store_init_configuration(dict(_flat(run.step.model_dump(mode="json"))))

    def after_step(self, run: Run, stats: StepStats, row: Mapping[str, Any] | None) -> None:
        """Hand on what is new."""
        if self.tracker is None:
            return
        values = tracked(row) if row is not None else {}
        for validated in self.validation.rows if self.validation is not None else ():
            bands = zip(band_names(validated["edges"]), validated["bands"], strict=True)
            values |= {f"validation_{validated['weights']}/{band}": loss for band, loss in bands}
            values[f"validation/{validated['weights']}"] = validated["loss"]
        if values:
            self.tracker.log(values, step=run.counters.step)
        if self.images is not None and self.images.latest is not None:
            self._log_images(self.images.latest, run.counters.step)

    def end(self, run: Run) -> None:
        """Close the tracker's run."""
        if self.tracker is not None:
            self.tracker.finish()

    def _options(self, run: Run) -> dict[str, Any]:
        """Arguments that make a continued run go on."""
        if self.name == "tensorboard":
            return {"purge_step": run.counters.step + 1} if run.counters.step else {}
        if self.name == "wandb":
            named = {"id": _run_id(run.output), "name": run.output.name}
            return named | {"resume": "allow", "dir": str(run.output)}
        return {}

    def _log_images(self, folder: Path, step: int) -> None:
        if not hasattr(self.tracker, "log_images"):
            return
        files = sorted(folder.glob("[0-9]*.png"), key=lambda file: int(file.stem))
        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        if self.name != "tensorboard":
            self.tracker.log_images({"validation": pictures}, step=step)
            return
        for number, picture in enumerate(pictures):  # pictures of different sizes make no array
            images = {f"validation/{number}": picture[None]}
            self.tracker.log_images(images, step=step, dataformats="NHWC")


def tracked(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log row, named in two groups."""
    numbers = {f"train/{name}": value for name, value in row.items() if name not in ("step", "pace")}
    numbers |= {f"pace/{name}": value for name, value in row.get("pace", {}).items()}
    return {name: value for name, value in numbers.items() if isinstance(value, int | float)}


def _run_id(output: Path) -> str:
    """Drawn once for a run and kept in its folder."""
    path = output / RUN_ID
    if not path.is_file():
        write_json(path, {"id": uuid.uuid4().hex[:12]})
    return str(read_json(path, "it holds the id of the trackers' run").get("id"))


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float]]:
    """Options as trackers take them: numbers and texts by dotted name."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, int | float | str) else json.dumps(value)
