"""Validation images: the same prompts and seeds every time, drawn with the averaged weights."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from pixart_core.errors import PixartError
from pixart_core.recipe.watching import ValidationOptions
from pixart_core.training.averaged import evaluating
from pixart_core.training.processes import all_told
from pixart_core.training.run import Run
from pixart_core.training.start import Start
from pixart_core.training.step import StepStats

FOLDER = "validation"
Picture = np.ndarray  # (height, width, 3), uint8


class Painter(Protocol):
    """Draws the validation images: sampling knows how, and is given to training by the command.

    Attributes:
        groups: number of groups of images that are drawn together; the same for every number of processes.
    """

    groups: int

    def draw(self, transformer: nn.Module, group: int) -> list[Picture]:
        """The pictures of a group, by the weights that `transformer` has now."""

    def publish(self, folder: Path, step: int, pictures: Sequence[Picture]) -> None:
        """Write all pictures (group after group), prompts and a contact sheet; whole or not at all."""


# Raises UserError if VAE or text encoder cannot be loaded, or prompts or sizes do not fit the model.
OpenPainter = Callable[[ValidationOptions, Start, Accelerator], Painter]


def folder_of(output: Path, step: int) -> Path:
    """Where the images of `step` are."""
    return output / FOLDER / f"step_{step:08d}"


def drawn_steps(output: Path) -> dict[int, Path]:
    """The steps of which there are images, oldest first."""
    found = (output / FOLDER).glob("step_*")
    steps = {int(match[1]): path for path in found if (match := re.fullmatch(r"step_(\d+)", path.name))}
    return dict(sorted(steps.items()))


class ValidationImages:
    """Watcher: draws `validation/step_XXXXXXXX/` now and then.

    The painter is opened at once, so that what it lacks is known before the first step.

    Attributes:
        latest: folder of what was drawn at this step; None if nothing was.
    """

    def __init__(self, options: ValidationOptions, open_painter: OpenPainter) -> None:
        self.options = options
        self.open_painter = open_painter
        self.every = options.images_every or options.every
        self.painter: Painter | None = None
        self.latest: Path | None = None

    def begin(self, run: Run) -> None:
        """Load what drawing needs.

        Raises:
            UserError: it cannot be had.
        """
        self.painter = self.open_painter(self.options, run.start, run.accelerator)

    def after_step(self, run: Run, stats: StepStats, row: Mapping[str, Any] | None) -> None:
        """Draw, if it is time."""
        self.latest = None
        if run.counters.step % self.every and not run.done:
            return
        assert self.painter is not None
        told = all_told(run.accelerator, self._share(run, self.painter))
        if failure := next((share for share in told if isinstance(share, str)), None):
            raise PixartError(failure)
        shares = [share for share in told if not isinstance(share, str)]
        world = len(shares)
        folder = folder_of(run.output, run.counters.step)
        if run.accelerator.is_main_process:
            groups = [shares[group % world][group // world] for group in range(self.painter.groups)]
            self.painter.publish(
                folder, run.counters.step, [picture for group in groups for picture in group]
            )
        self.latest = folder
        run.progress.say(f"step {run.counters.step}: validation images in {folder}")

    def end(self, run: Run) -> None:
        """Nothing is left to do."""

    def _share(self, run: Run, painter: Painter) -> list[list[Picture]] | str:
        """This process's groups: every world-th; or what went wrong, which all must know of."""
        world, rank = run.accelerator.num_processes, run.accelerator.process_index
        autocast = run.step.mixed_precision == "bf16"
        try:
            with (
                evaluating(run.model, run.ema),
                torch.autocast(run.accelerator.device.type, torch.bfloat16, enabled=autocast),
            ):
                # Sharded models need all processes in every pass: one without work repeats the last group.
                return [
                    painter.draw(run.model, min(start + rank, painter.groups - 1))
                    for start in range(0, painter.groups, world)
                ]
        except Exception as error:
            return str(error) or type(error).__name__
