"""What looks at a training while it runs: each watcher is told of every step, none changes the run."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pixart_core.training.run import Run
from pixart_core.training.step import StepStats


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


def watchers_of(run: Run) -> Sequence[Watcher]:
    """The watchers that the recipe of `run` asks for."""
    return ()
