"""`log.jsonl`: how a run went, a row every `log_every` steps."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from pixart_core.artifacts.publish import write_text
from pixart_core.errors import PixartError
from pixart_core.recipe.training import TrainStep
from pixart_core.training.processes import mean_over_processes
from pixart_core.training.state import Counters


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
        # Rows after the state that is continued belong to steps that are done again.
        kept = [row for row in _rows(path) if row["step"] <= counters.step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        if kept:
            self.last_loss = kept[-1]["loss"]

    def record(
        self, counters: Counters, stats: dict[str, Tensor], *, learning_rate: float
    ) -> dict[str, float] | None:
        """Add a step; returns the row that was written, None between two rows."""
        for name, value in stats.items():
            counters.pending[name] = counters.pending.get(name, 0.0) + float(value)
        counters.pending_steps += 1
        if counters.step % self.every and counters.step != self.end:
            return None
        means = {name: total / counters.pending_steps for name, total in counters.pending.items()}
        counters.pending.clear()
        counters.pending_steps = 0
        row = mean_over_processes(self.accelerator, means) | {
            "step": counters.step,
            "lr": learning_rate,
            "images": counters.step * self.images_per_step,
            "seconds": round(counters.seconds, 3),
        }
        self.last_loss = row["loss"]
        if self.accelerator.is_main_process:
            self._append(row)
        return row

    def _append(self, row: dict[str, float]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
        except OSError as error:
            raise PixartError(
                f"cannot write {self.path}: {error.strerror}; the last state is kept"
            ) from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log; a line that a kill or a full disk cut short is left out."""
    for line in path.read_text().split("\n") if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
