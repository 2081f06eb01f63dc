"""Which function does each command; modules load when they are called."""

import importlib
from pathlib import Path
from typing import Any

from pixart_core.progress import Progress
from pixart_core.recipe.chain import Runner

FUNCTIONS = {
    "shapes": "pixart_core.data.shapes_dataset:run_shapes",
    "encoders": "pixart_core.encoders.build:run_encoders",
    "caption": "pixart_core.encoders.caption:run_caption",
    "extract-features": "pixart_core.encoders.extract:run_extraction",
    "train": "pixart_core.conversion.initial:run_training",
    "convert": "pixart_core.conversion.convert:run_conversion",
    "sample": "pixart_core.sampling.sample:run_sampling",
    "evaluate": "pixart_core.evaluation.evaluate:run_evaluation",
}


def runner(command: str) -> Runner:
    """The function of `command`, loaded when it is first called."""
    module, name = FUNCTIONS[command].split(":")

    def call(step: Any, output: Path, progress: Progress) -> dict[str, Any]:
        function: Runner = getattr(importlib.import_module(module), name)
        return function(step, output, progress)

    return call


RUNNERS: dict[str, Runner] = {command: runner(command) for command in FUNCTIONS}
