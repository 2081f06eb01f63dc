"""`pixart sample`: prompts in, a sample set out; a killed run continues, several processes share the work."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.samples import finish_samples, write_image
from pixart_core.encoders.device import choose_device
from pixart_core.launch import Processes, connect
from pixart_core.progress import Progress
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.draw import draw
from pixart_core.sampling.gallery import write_gallery
from pixart_core.sampling.loading import prepare_model
from pixart_core.sampling.mark import begin
from pixart_core.sampling.memory import MemoryWatch
from pixart_core.sampling.plan import SamplingPlan, Todo, plan_sampling
from pixart_core.sampling.settings import settings_of
from pixart_core.sampling.sheet import write_sheet
from pixart_core.training.told_once import told_once


@told_once
def run_sampling(step: SampleStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Draw what `step` asks for into `output`; images that are there already are kept.

    Killed and run again, by any number of processes, it ends with the same bytes.

    Returns:
        output, images, and memory (peaks of this process; see `MemoryWatch.report`) if anything was drawn.

    Raises:
        UserError: checkpoint, prompts or sizes are wrong, or `output` holds other samples or is being drawn.
        PixartError: the disk is full; images that are there are kept.
    """
    processes = connect()
    device = choose_device(step.device, processes.local_rank)
    plan = plan_sampling(step)
    with only_launch(output, progress.say) if processes.first else contextlib.nullcontext():
        if processes.first:
            begin(output, plan.card)
            for note in plan.notes:
                progress.say(note)
        processes.wait()
        todo = plan.todo(output)
        processes.wait()  # nobody writes before all have seen what is missing
        if there := len(plan.records) - sum(len(batch.missing) for batch in todo):
            progress.say(f"{there} of {len(plan.records)} images are there already")
        memory = _draw(step, plan, processes.share(todo), device, output, processes, progress)
        processes.wait()
        if not processes.first:
            return {"output": str(output)}
        write_sheet(output, plan.records)
        write_gallery(output, plan.records)
        finish_samples(output, plan.records, plan.card)
    return {"output": str(output), "images": len(plan.records)} | memory


def _draw(
    step: SampleStep,
    plan: SamplingPlan,
    mine: Sequence[Todo],
    device: torch.device,
    output: Path,
    processes: Processes,
    progress: Progress,
) -> dict[str, Any]:
    """Draw this process's batches; nothing is loaded if there are none. Returns what memory it took."""
    if not mine:
        return {}
    model = prepare_model(
        plan.outline,
        step,
        plan.batches,
        [batch.records for batch in mine],
        device,
        folder=output,
        progress=progress,
    )
    settings = dataclasses.asdict(settings_of(model, step, plan.card, output))
    task = f"sample {output.name}" + (f", 1 of {processes.count} shares" if processes.count > 1 else "")
    progress.start(task, sum(len(batch.missing) for batch in mine))
    for records, missing in mine:
        for record, image in zip(records, draw(model, step, records), strict=True):
            if record.file in missing:
                write_image(output, record, image, settings)
        progress.advance(task, len(missing))
    progress.finish(task)
    return _told(model.memory, progress)


def _told(memory: MemoryWatch, progress: Progress) -> dict[str, Any]:
    if remark := memory.words():
        progress.say(remark)
    return {"memory": memory.report()}
