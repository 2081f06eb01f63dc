"""Pictures of a sample set: which are drawn together, and how."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from PIL import Image

from pixart_core.artifacts.samples import SampleRecord
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling.denoise import denoise, initial_noise, noise_generators
from pixart_core.sampling.memory import enough_memory
from pixart_core.sampling.model import SamplingModel
from pixart_core.sampling.schedulers import STOCHASTIC


def batches(records: list[SampleRecord], size: int) -> Iterator[list[SampleRecord]]:
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


def draw(model: SamplingModel, step: SampleStep, records: list[SampleRecord]) -> list[Image.Image]:
    """Pictures of records that `batches` put together."""
    factor, first = model.pixels_per_latent, records[0]
    steps, guidance = _solving(first)
    shape = (model.transformer.config.in_channels, first.height // factor, first.width // factor)
    prompts, unconditional = model.encoded([record.prompt for record in records], first.negative_prompt or "")
    seeds = [record.seed for record in records]
    what = f"{len(records)} images of {first.height}x{first.width} px"
    with (
        model.memory.phase("denoising"),
        enough_memory(f"denoising {what}", "lower batch_size, or dtype=bf16"),
    ):
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
    with model.memory.phase("decoding"), enough_memory(f"decoding {what}", "set vae_tiling=true"):
        pixels = ((model.decode(latents) + 1) * 127.5).round().byte()
    return [Image.fromarray(np.asarray(p)) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]
