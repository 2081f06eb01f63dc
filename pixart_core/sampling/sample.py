"""`pixart sample`: prompts in, a sample set out; a killed run continues."""

import dataclasses
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pixart_core.artifacts.card import Card, card_for
from pixart_core.artifacts.publish import write_text
from pixart_core.artifacts.samples import IMAGES, SampleRecord, finish_samples, write_image
from pixart_core.encoders.device import choose_device
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.denoise import check_sampler, denoise, initial_noise, noise_generators
from pixart_core.sampling.model import SamplingModel, load_model
from pixart_core.sampling.requests import read_requests
from pixart_core.sampling.schedulers import STOCHASTIC
from pixart_core.sampling.sheet import write_sheet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STARTED = "sampling.json"


def run_sampling(step: SampleStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Draw what `step` asks for into `output`; images that are there already are kept.

    Raises:
        UserError: checkpoint, prompts or sizes are wrong, or `output` holds other samples.
    """
    device = choose_device(step.device)
    model = load_model(str(step.checkpoint), device, DTYPES[step.dtype])
    check_sampler(model, step.scheduler)
    records = read_requests(step, model.default_size)
    untrained = _untrained_sizes(model, step, records)
    records = [
        dataclasses.replace(record, untrained_size=(record.height, record.width) in untrained)
        for record in records
    ]
    details = model.facts.to_details() | {"count": len(records), "untrained_sizes": sorted(untrained)}
    card = card_for("samples", step, details)
    _start(output, card)
    for reason in sorted(set(untrained.values())):
        progress.say(f"{reason}; drawn all the same (any_size)")

    todo = [record for record in records if not (output / record.file).is_file()]
    if len(todo) < len(records):
        progress.say(f"{len(records) - len(todo)} of {len(records)} images are there already")
    task = f"sample {output.name}"
    progress.start(task, len(records))
    progress.advance(task, len(records) - len(todo))
    settings = {
        "checkpoint": card.inputs["checkpoint"],
        "scheduler": step.scheduler,
        "guidance_interval": step.guidance_interval,
        "dtype": step.dtype,
        "pixart_version": card.pixart_version,
    }
    for batch in _batches(todo, step.batch_size):
        for record, image in zip(batch, _draw(model, step, batch), strict=True):
            write_image(output, record, image, settings)
        progress.advance(task, len(batch))
    progress.finish(task)
    write_sheet(output, records)
    finish_samples(output, records, card)
    return {"output": str(output), "images": len(records)}


def _untrained_sizes(
    model: SamplingModel, step: SampleStep, records: list[SampleRecord]
) -> dict[tuple[int, int], str]:
    """Sizes far from those that the model was trained on, and why.

    Raises:
        UserError: there are such without `step.any_size`, or sizes that do not divide into patches.
    """
    untrained = {}
    for height, width in sorted({(record.height, record.width) for record in records}):
        model.check_size(height, width)
        reason = model.why_untrained(height, width)
        if reason is not None:
            if not step.any_size:
                raise UserError(f"{reason}; or allow it with --set any_size=true")
            untrained[height, width] = reason
    return untrained


def _batches(records: list[SampleRecord], size: int) -> Iterator[list[SampleRecord]]:
    """Batches of pictures that are drawn alike: one size, and one number of steps, guidance and so on."""

    def key(record: SampleRecord) -> tuple[int, int, int, float, str]:
        steps, guidance = _solving(record)
        return record.height, record.width, steps, guidance, record.negative_prompt or ""

    for _, group in groupby(sorted(records, key=key), key=key):
        same = list(group)
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _solving(record: SampleRecord) -> tuple[int, float]:
    """Steps and guidance scale, which `read_requests` gives every record."""
    assert record.num_inference_steps is not None
    assert record.guidance_scale is not None
    return record.num_inference_steps, record.guidance_scale


def _draw(model: SamplingModel, step: SampleStep, records: list[SampleRecord]) -> list[Image.Image]:
    """Pictures of records that `_batches` put together."""
    factor, first = model.pixels_per_latent, records[0]
    steps, guidance = _solving(first)
    shape = (model.transformer.config.in_channels, first.height // factor, first.width // factor)
    prompts, unconditional = model.encode([record.prompt for record in records], first.negative_prompt or "")
    seeds = [record.seed for record in records]
    latents = denoise(
        model,
        initial_noise(seeds, shape),
        prompts,
        unconditional,
        scheduler=step.scheduler,
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_interval=step.guidance_interval,
        generators=noise_generators(seeds, shape) if step.scheduler in STOCHASTIC else None,
    )
    pixels = ((model.decode(latents) + 1) * 127.5).round().byte()
    return [Image.fromarray(np.asarray(p)) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]


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
