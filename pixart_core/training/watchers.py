"""What looks at a training while it runs: each watcher is told of every step, none changes the run."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from pixart_core.errors import UserError
from pixart_core.training.page import PAGE, Page
from pixart_core.training.processes import on_any
from pixart_core.training.run import Run
from pixart_core.training.step import StepStats
from pixart_core.training.told_once import Ending
from pixart_core.training.trackers import CsvFiles, TrackerOf
from pixart_core.training.validation import ValidationLoss
from pixart_core.training.validation_images import OpenPainter, ValidationImages


class Watcher(Protocol):
    """Told of a run in this order: begin, then after_step once a step, then end (not after a failure).

    Every process has its watchers and calls them at the same steps, so that they may use collectives.
    """

    def begin(self, run: Run) -> None:
        """Before the first step of this sitting; `run.counters.step` is where it continues."""

    def after_step(self, run: Run, stats: StepStats, row: Mapping[str, Any] | None) -> None:
        """After optimiser step `run.counters.step`.

        Args:
            stats: of this step, this process's share.
            row: what was written into `log.jsonl` at this step; None between two rows.
        """

    def end(self, run: Run) -> None:
        """After the last step, before the checkpoint is published."""


class Guarded:
    """A watcher whose failures are told, once each, and end nothing.

    Only a user's mistake ends a run, and only one that has not begun: it costs nothing then. That another
    process is gone is no failure of the watcher.
    """

    def __init__(self, watcher: Watcher, name: str) -> None:
        self.watcher = watcher
        self.name = name
        self.told: set[str] = set()
        self.begun = False

    def begin(self, run: Run) -> None:
        """Guarded `begin`; a watcher that fails here on any process is not called again on any."""
        begun = False
        with self._guarded(run, strict=not run.counters.step):
            self.watcher.begin(run)
            begun = True
        # Its collective operations want all processes, or none.
        self.begun = not on_any(run.accelerator, not begun)[0]

    def after_step(self, run: Run, stats: StepStats, row: Mapping[str, Any] | None) -> None:
        """Guarded `after_step`."""
        if self.begun:
            with self._guarded(run):
                self.watcher.after_step(run, stats, row)

    def end(self, run: Run) -> None:
        """Guarded `end`."""
        if self.begun:
            with self._guarded(run):
                self.watcher.end(run)

    @contextlib.contextmanager
    def _guarded(self, run: Run, strict: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (strict and isinstance(error, UserError)) or Ending.of(error).kind == "lost":
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if lines[0] not in self.told:
                self.told.add(lines[0])
                run.progress.say(f"{self.name} failed ({lines[0]}); the training goes on")


def watchers_of(run: Run, open_painter: OpenPainter | None = None) -> Sequence[Watcher]:
    """The watchers that the recipe of `run` asks for.

    Args:
        open_painter: what draws validation images; without it there are none.
    """
    step = run.step
    loss = images = None
    watchers: list[tuple[str, Watcher]] = []
    if step.validation is not None and step.validation.samples:
        loss = ValidationLoss(step.validation)
        watchers.append(("validation", loss))
    if step.validation is not None and step.validation.prompts and open_painter is not None:
        images = ValidationImages(step.validation, open_painter)
        watchers.append(("drawing validation images", images))
    # After validation: they hand on what is new.
    for name in dict.fromkeys(step.report_to):
        watcher = CsvFiles(run, loss) if name == "csv" else TrackerOf(name, loss, images)
        watchers.append((f"report_to: {name}", watcher))
    if step.page:
        watchers.append((PAGE, Page(loss, images)))
    return [Guarded(watcher, name) for name, watcher in watchers]
