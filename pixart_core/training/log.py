"""`log.jsonl`: how a run went, a row every `log_every` steps."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pixart_core.artifacts.publish import write_text
from pixart_core.errors import PixartError
from pixart_core.recipe.training import TrainStep
from pixart_core.training.pace import Pace
from pixart_core.training.processes import mean_over_processes
from pixart_core.training.state import Counters

# What a clock says; everything else in a row is equal in two runs of one recipe.
CLOCK = frozenset({"seconds", "pace"})


def without_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row that two runs of one recipe have in common."""
    return {name: value for name, value in row.items() if name not in CLOCK}


class TrainingLog:
    """Writes rows that hold means since the row before."""

    def __init__(self, path: Path, counters: Counters, step: TrainStep, accelerator: Accelerator) -> None:
        self.path = path
        self.accelerator = accelerator
        self.every = step.log_every
        self.end = step.max_train_steps
        self.images_per_step = step.global_batch_size
        self.last_loss: float | None = None
        if not accelerator.is_main_process:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = forget_after(path, counters.step)
        if kept:
            self.last_loss = kept[-1]["loss"]

    def record(
        self, counters: Counters, stats: dict[str, Tensor], *, learning_rate: float, pace: Pace
    ) -> dict[str, Any] | None:
        """Add a step; returns the row that was written, None between two rows.

        Args:
            stats: empty for a step that was lost; a row of lost steps alone is not written.
        """
        if stats:
            self._add(counters, stats)
        if (counters.step % self.every and counters.step != self.end) or not counters.pending_steps:
            return None
        means = {name: total / counters.pending_steps for name, total in counters.pending.items()}
        counters.pending.clear()
        counters.pending_steps = 0
        row: dict[str, Any] = mean_over_processes(self.accelerator, means) | {
            "step": counters.step,
            "lr": learning_rate,
            "images": counters.step * self.images_per_step,
            "seconds": round(counters.seconds, 3),
            "pace": pace.row(counters),
        }
        if counters.lost:
            row["lost_steps"] = counters.lost
        self.last_loss = row["loss"]
        if self.accelerator.is_main_process:
            self._append(row)
        return row

    @staticmethod
    def _add(counters: Counters, stats: dict[str, Tensor]) -> None:
        device = next(iter(stats.values())).device
        together = torch.stack([value.to(device) for value in stats.values()])
        for name, value in zip(stats, together.tolist(), strict=True):  # waits for a GPU once
            counters.pending[name] = counters.pending.get(name, 0.0) + value
        counters.pending_steps += 1

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            append_row(self.path, row)
        except OSError as error:
            raise PixartError(
                f"cannot write {self.path}: {error.strerror}; the last state is kept"
            ) from error


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a file of rows."""
    with path.open("a") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")


def forget_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Leave the rows up to `step` in the file, and return them: the steps after it are done again."""
    kept = [row for row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))
    return kept


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, oldest first; a line that a kill or a full disk cut short is left out."""
    rows = []
    for line in path.read_text().split("\n") if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
