"""Draws the validation images of a training, which is given `open_painter` by the command."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from pixart_core.artifacts.publish import staged_folder
from pixart_core.artifacts.samples import SAMPLES, SampleRecord, write_image
from pixart_core.encoders.text import load_text_encoder
from pixart_core.encoders.vae import load_vae
from pixart_core.errors import UserError
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.recipe.watching import ValidationOptions
from pixart_core.sampling.denoise import denoise, initial_noise
from pixart_core.sampling.model import SamplingModel
from pixart_core.sampling.prompt_tokens import encode_prompts, texts_of
from pixart_core.sampling.requests import read_requests
from pixart_core.sampling.sheet import write_sheet
from pixart_core.training.processes import all_told, failing_together
from pixart_core.training.start import Start
from pixart_core.training.validation_images import Picture


class ValidationPainter:
    """Draws the pictures that `validation` asks for, with whatever weights the model has.

    Attributes:
        records: of all pictures, in the order of the groups.
        prompts, unconditional: tokens of each picture's prompt, and of what guidance leads away from.
    """

    def __init__(
        self,
        options: ValidationOptions,
        model: SamplingModel,
        records: Sequence[SampleRecord],
        prompts: Sequence[torch.Tensor],
        unconditional: torch.Tensor | None,
    ) -> None:
        self.options = options
        self.model = model
        self.records = records
        self.prompts = prompts
        self.unconditional = unconditional
        self._groups = _groups(records, options.batch_size)
        self.groups = len(self._groups)

    def draw(self, transformer: nn.Module, group: int) -> list[Picture]:
        """The pictures of a group, by the weights that `transformer` has now."""
        assert isinstance(transformer, PixArtTransformer)
        numbers = self._groups[group]
        model = dataclasses.replace(self.model, transformer=transformer)
        first = self.records[numbers[0]]
        factor = model.pixels_per_latent
        shape = (transformer.config.in_channels, first.height // factor, first.width // factor)
        latents = denoise(
            model,
            initial_noise([self.records[number].seed for number in numbers], shape),
            [self.prompts[number] for number in numbers],
            self.unconditional,
            scheduler=self.options.scheduler,
            num_inference_steps=self.options.num_inference_steps,
            guidance_scale=self.options.guidance_scale,
        )
        with torch.autocast(model.device.type, enabled=False):  # Stable Diffusion's VAE decodes in float32
            pixels = ((model.decode(latents.float()) + 1) * 127.5).round().byte()
        return list(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def publish(self, folder: Path, step: int, pictures: Sequence[Picture]) -> None:
        """Write pictures, `samples.jsonl` and a contact sheet into `folder`, whole or not at all."""
        settings = ("num_inference_steps", "guidance_scale", "negative_prompt", "scheduler")
        told = {"step": step} | {name: getattr(self.options, name) for name in settings}
        order = [number for group in self._groups for number in group]
        with staged_folder(folder) as staging:
            for number, picture in zip(order, pictures, strict=True):
                write_image(staging, self.records[number], Image.fromarray(picture), told)
            rows = (json.dumps(dataclasses.asdict(record), ensure_ascii=False) for record in self.records)
            (staging / SAMPLES).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
            write_sheet(staging, self.records)


def open_painter(options: ValidationOptions, start: Start, accelerator: Accelerator) -> ValidationPainter:
    """Encode the prompts (the first process, for all), let go of the text encoder, keep the VAE.

    Raises:
        UserError: a class-conditional model, encoders that cannot be loaded, or sizes that do not fit.
    """
    if not isinstance(start.model, PixArtTransformer):
        raise UserError("validation.prompts are for text-to-image models; this one is class-conditional")
    facts, device = start.facts, accelerator.device
    with failing_together(accelerator):
        vae = load_vae(str(options.vae or facts.vae), device)
    learned = start.unconditional is not None and start.unconditional.keeps_mask
    model = SamplingModel(
        source="the model",
        transformer=start.model,
        vae=vae,
        facts=facts,
        learned_uncond=start.unconditional.tokens if learned and start.unconditional else None,
        device=device,
    )
    with failing_together(accelerator):
        records = _records(options, model)
        encoded = _encode(options, model, records) if accelerator.is_main_process else None
    prompts, unconditional = all_told(accelerator, encoded)[0] or ([], None)
    return ValidationPainter(options, model, records, prompts, unconditional)


def _encode(options: ValidationOptions, model: SamplingModel, records: Sequence[SampleRecord]) -> Any:
    """Tokens of the prompts and of what guidance leads away from; the encoder is gone afterwards."""
    # Beside a model and its optimiser a GPU has no room for T5-XXL in float32.
    dtype = torch.bfloat16 if model.device.type == "cuda" else torch.float32
    source = str(options.text_encoder or model.facts.text_encoder)
    drawn = [dataclasses.replace(record, negative_prompt=options.negative_prompt) for record in records]
    texts = texts_of([drawn], empty_is_learned=model.learned_uncond is not None)
    tokens = encode_prompts(
        texts,
        texts,
        lambda: load_text_encoder(source, model.device, dtype),
        max_tokens=model.facts.max_tokens,
        dtype=dtype,
        folder=Path(tempfile.gettempdir()),
        progress=Silent(),
    )
    with_tokens = dataclasses.replace(model, tokens=tokens)
    return with_tokens.encoded([record.prompt for record in records], options.negative_prompt)


def _records(options: ValidationOptions, model: SamplingModel) -> list[SampleRecord]:
    """Raises:
    UserError: a size that does not divide into patches."""
    asked = SampleStep(
        checkpoint="",
        prompts=options.prompts,
        prompts_file=None,
        any_size=True,
        images_per_prompt=options.images_per_prompt,
        sizes=options.sizes,
        seed=options.seed,
        scheduler=options.scheduler,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        negative_prompt=options.negative_prompt,
    )
    records = read_requests(asked, model.outline.default_size)
    for height, width in sorted({(record.height, record.width) for record in records}):
        model.outline.check_size(height, width)
    return [dataclasses.replace(record, file=f"{n}.png") for n, record in enumerate(records)]


def _groups(records: Sequence[SampleRecord], size: int) -> list[list[int]]:
    """Numbers of pictures of one size each, at most `size` together."""

    def key(number: int) -> tuple[int, int]:
        return records[number].height, records[number].width

    groups = []
    for _, group in groupby(sorted(range(len(records)), key=key), key=key):
        same = list(group)
        groups += [same[start : start + size] for start in range(0, len(same), size)]
    return groups
