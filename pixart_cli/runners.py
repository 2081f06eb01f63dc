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


def train(step: Any, output: Path, progress: Progress) -> dict[str, Any]:
    """Train in this process, or in as many as `processes_for` says."""
    from pixart_cli.launching import launch, processes_for

    count = processes_for(step, progress)
    if count == 1:
        return runner("train")(step, output, progress)
    return launch("train", step, output, count, progress)


def sample(step: Any, output: Path, progress: Progress) -> dict[str, Any]:
    """Draw in this process, or in as many as `processes_for` says and there are batches for."""
    from pixart_cli.launching import launch, processes_for

    count = gpus = processes_for(step, progress)
    if gpus > 1 and step.processes is None:
        from pixart_core.sampling.plan import plan_sampling

        count = min(gpus, max(1, len(plan_sampling(step).todo(output))))
        if count < gpus:
            progress.say(f"{count} of {gpus} GPUs are used: no more batches (batch_size {step.batch_size})")
    if count == 1:
        return runner("sample")(step, output, progress)
    return launch("sample", step, output, count, progress)


RUNNERS: dict[str, Runner] = {command: runner(command) for command in FUNCTIONS} | {
    "train": train,
    "sample": sample,
}
