"""`pixart sample`: prompts in, a sample set out; a killed run continues."""

import dataclasses
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import Card, card_for
from pixart_core.artifacts.publish import write_text
from pixart_core.artifacts.samples import IMAGES, SampleRecord, finish_samples, write_image
from pixart_core.encoders.device import choose_device
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.again import settings_of
from pixart_core.sampling.bins import SizeChoice
from pixart_core.sampling.draw import batches, draw
from pixart_core.sampling.gallery import write_gallery
from pixart_core.sampling.loading import prepare_model
from pixart_core.sampling.outline import ModelOutline, read_outline
from pixart_core.sampling.requests import read_requests
from pixart_core.sampling.sheet import write_sheet

STARTED = "sampling.json"


def run_sampling(step: SampleStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Draw what `step` asks for into `output`; images that are there already are kept.

    Raises:
        UserError: checkpoint, prompts or sizes are wrong, or `output` holds other samples.
    """
    device = choose_device(step.device)
    outline = read_outline(str(step.checkpoint))
    outline.check_sampler(step.scheduler)
    choice = SizeChoice(outline, any_size=step.any_size)
    records = read_requests(step, outline.default_size, choice)
    untrained = _untrained_sizes(outline, step, records)
    records = [
        dataclasses.replace(record, untrained_size=(record.height, record.width) in untrained)
        for record in records
    ]
    details = outline.facts.to_details() | {"count": len(records), "untrained_sizes": sorted(untrained)}
    card = card_for("samples", step, details)
    _start(output, card)
    for note in choice.notes:
        progress.say(note)
    for reason in sorted(set(untrained.values())):
        progress.say(f"{reason}; drawn all the same (any_size)")

    todo = [record for record in records if not (output / record.file).is_file()]
    if len(todo) < len(records):
        progress.say(f"{len(records) - len(todo)} of {len(records)} images are there already")
    everything, missing = (list(batches(some, step.batch_size)) for some in (records, todo))
    model = prepare_model(outline, step, everything, missing, device, folder=output, progress=progress)
    task = f"sample {output.name}"
    progress.start(task, len(records))
    progress.advance(task, len(records) - len(todo))
    settings = dataclasses.asdict(settings_of(model, step, card, output))
    for batch in missing:
        for record, image in zip(batch, draw(model, step, batch), strict=True):
            write_image(output, record, image, settings)
        progress.advance(task, len(batch))
    progress.finish(task)
    write_sheet(output, records)
    write_gallery(output, records)
    finish_samples(output, records, card)
    if remark := model.memory.words():
        progress.say(remark)
    return {"output": str(output), "images": len(records), "memory": model.memory.report()}


def _untrained_sizes(
    outline: ModelOutline, step: SampleStep, records: list[SampleRecord]
) -> dict[tuple[int, int], str]:
    """Sizes far from those that the model was trained on, and why.

    Raises:
        UserError: there are such without `step.any_size`, or sizes that do not divide into patches.
    """
    untrained = {}
    for height, width in sorted({(record.height, record.width) for record in records}):
        outline.check_size(height, width)
        reason = outline.why_untrained(height, width)
        if reason is not None:
            if not step.any_size:
                raise UserError(f"{reason}; or allow it with --set any_size=true")
            untrained[height, width] = reason
    return untrained


def _start(output: Path, card: Card) -> None:
    """Remember what is being drawn, or compare with what an earlier, killed run began.

    Raises:
        UserError: `output` holds samples of another checkpoint or of other options, or foreign images.
    """
    begun = _begun(output)
    if begun is None:
        images = output / IMAGES
        if images.exists() and not (images.is_dir() and not any(images.iterdir())):
            raise UserError(f"{images} is not empty and not of this run; choose another output")
        write_text(output / STARTED, card.fingerprint + "\n")
    elif begun != card.fingerprint:
        raise UserError(
            f"{output} holds samples of another checkpoint or with other options; choose another output"
        )


def _begun(output: Path) -> str | None:
    """Fingerprint of the run that began `output`; None without a marker that can be read."""
    try:
        return (output / STARTED).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
