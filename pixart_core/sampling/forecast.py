"""What `pixart sample --dry-run` tells: counts, arithmetic and disk of a plan, no weights being loaded."""

import functools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixart_core.artifacts.samples import SampleRecord
from pixart_core.recipe.model_counts import Interface, forward_flops
from pixart_core.recipe.sample import SampleStep
from pixart_core.recipe.training import ModelOptions
from pixart_core.sampling.mark import refuse_others
from pixart_core.sampling.outline import ModelOutline
from pixart_core.sampling.plan import SamplingPlan
from pixart_core.sampling.schedulers import build_scheduler, inside_interval

ASSUMED = (
    "FLOPs: of the transformer alone, captions at full length; what is computed but once saves some",
    "disk: pictures that do not compress at all",
)


def forecast(plan: SamplingPlan, step: SampleStep, output: Path) -> dict[str, Any]:
    """Counts of what `plan` draws into `output`, and of what is there already.

    Returns:
        prompts, images, there (images drawn already), batches, batches_left, sizes ({"HxW": images}),
        solver_steps, model_calls (pictures that pass through the transformer: two a guided step and image),
        flops, flops_left, disk_bytes_at_most, notes, assumed.

    Raises:
        UserError: `output` holds other samples; what the run itself would raise.
    """
    refuse_others(output, plan.card)
    todo, sizes = plan.todo(output), Counter((record.height, record.width) for record in plan.records)
    each = {size: flops_per_call(plan.outline, *size) for size in sizes}

    def calls(record: SampleRecord) -> int:
        assert record.num_inference_steps is not None
        assert record.guidance_scale is not None
        return model_calls(
            step.scheduler, record.num_inference_steps, record.guidance_scale, step.guidance_interval
        )

    def flops(records: Iterable[SampleRecord]) -> int:
        return sum(calls(record) * each[record.height, record.width] for record in records)

    return {
        "prompts": len({record.id for record in plan.records}),
        "images": len(plan.records),
        "there": len(plan.records) - sum(len(batch.missing) for batch in todo),
        "batches": len(plan.batches),
        "batches_left": len(todo),
        "sizes": {f"{height}x{width}": count for (height, width), count in sorted(sizes.items())},
        "solver_steps": sum(record.num_inference_steps or 0 for record in plan.records),
        "model_calls": sum(map(calls, plan.records)),
        "flops": flops(plan.records),
        "flops_left": sum(flops(batch.records) for batch in todo),
        "disk_bytes_at_most": sum(map(png_bytes_at_most, plan.records)),
        "notes": list(plan.notes),
        "assumed": list(ASSUMED),
    }


@functools.cache
def model_calls(
    scheduler: str, num_inference_steps: int, guidance_scale: float, interval: tuple[float, float] | None
) -> int:
    """How often a picture passes through the transformer: twice in a guided step."""
    sampler = build_scheduler(scheduler, "epsilon")
    sampler.set_timesteps(num_inference_steps)
    if guidance_scale <= 1:
        return len(sampler.timesteps)
    return sum(2 if inside_interval(interval, int(t)) else 1 for t in sampler.timesteps)


def flops_per_call(outline: ModelOutline, height: int, width: int) -> int:
    """FLOPs of the transformer for one picture of that size in pixels; see `forward_flops`."""
    config = outline.config
    known = {name: getattr(config, name) for name in ModelOptions.model_fields if hasattr(config, name)}
    variance = config.out_channels != config.in_channels
    side = outline.pixels_per_latent * config.patch_size
    return forward_flops(
        ModelOptions.model_validate(known | {"learned_variance": variance}),
        (height // side) * (width // side),
        Interface(config.in_channels, config.caption_channels, outline.facts.max_tokens),
    )


def png_bytes_at_most(record: SampleRecord) -> int:
    """Of an image whose pixels do not compress at all: deflate and PNG then add less than a thousandth."""
    pixels = record.height * (3 * record.width + 1)  # a row begins with its filter
    text = 4 * (len(record.prompt) + len(record.negative_prompt or ""))  # UTF-8
    return pixels + pixels // 1000 + 2 * text + 4096
