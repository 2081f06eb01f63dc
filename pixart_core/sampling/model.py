"""Load all that sampling needs from a pipeline folder or a checkpoint of ours."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts, read_facts
from pixart_core.artifacts.uncond import UNCOND, missing_uncond, read_uncond
from pixart_core.encoders.text import TextEncoder, load_text_encoder
from pixart_core.encoders.vae import load_vae, vae_downsampling
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.sizes import (
    Size,
    default_size,
    how_far,
    how_to_train,
    name_sizes,
    positions_changed,
    trained_sizes,
)

PIPELINE = "model_index.json"
# Pixels that the VAE decodes in one call: it needs some gigabytes for a picture of 1024 x 1024.
DECODE_PIXELS = 1024 * 1024


@dataclasses.dataclass
class SamplingModel:
    """A text-to-image model, ready to sample.

    Attributes:
        source: where it was loaded from.
        text_encoder: None once all prompts are encoded, if it is not to take memory.
        learned_uncond: tokens of the learned unconditional caption; None: the empty caption is encoded.
    """

    source: str
    transformer: PixArtTransformer
    vae: Any
    text_encoder: TextEncoder | None
    facts: ModelFacts
    learned_uncond: Float[Tensor, "l d"] | None
    device: torch.device

    @property
    def pixels_per_latent(self) -> int:
        """Picture pixels per latent pixel, along a side."""
        return vae_downsampling(self.vae)

    @property
    def trained_sizes(self) -> tuple[Size, ...]:
        """(height, width) in pixels that the model was trained on."""
        return trained_sizes(self.facts, self.transformer.config, self.pixels_per_latent)

    @property
    def default_size(self) -> Size:
        """(height, width) in pixels of a picture for which none is asked."""
        return default_size(self.transformer.config, self.pixels_per_latent, self.trained_sizes)

    def check_size(self, height: int, width: int) -> None:
        """Raises:
        UserError: the size does not divide into patches."""
        step = self.pixels_per_latent * self.transformer.config.patch_size
        if height % step or width % step:
            raise UserError(f"{height}x{width}: height and width must be multiples of {step} for this model")

    def why_untrained(self, height: int, width: int) -> str | None:
        """Why the model was not trained for that size, with what can be done; None if it was, or nearly."""
        config, trained = self.transformer.config, name_sizes(self.trained_sizes)
        if positions_changed(self.facts, config):
            assert self.facts.trained_positions is not None
            sample_size, scale = self.facts.trained_positions
            return (
                f"{self.source} was trained at {trained} with positions for sample_size {sample_size}, scale "
                f"{scale:g}, and has since been given those for {config.sample_size}, "
                f"{config.interpolation_scale:g}, which need training first"
            )
        far = how_far((height, width), self.trained_sizes)
        if far is None:
            return None
        training = how_to_train((height, width), far, self.source, config, self.pixels_per_latent)
        return (
            f"{self.source} was trained at {trained}; {height}x{width} {far.words}: ask for one near, or "
            f"{training}"
        )

    def encode(
        self, prompts: list[str], negative_prompt: str
    ) -> tuple[list[Float[Tensor, "l d"]], Float[Tensor, "l d"] | None]:
        """Tokens of each prompt, and of the negative or empty one; None: the learned embedding's turn.

        A negative prompt takes the place of the learned embedding, as it does of the empty caption.
        """
        assert self.text_encoder is not None
        encoded = self.text_encoder.encode_each([*prompts, negative_prompt], self.facts.max_tokens)
        learned = self.learned_uncond is not None and not negative_prompt.strip()
        return encoded[:-1], None if learned else encoded[-1]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Pictures in [-1, 1] from scaled latents, `DECODE_PIXELS` at a time."""
        config = self.vae.config
        latents = latents.to(self.vae.dtype) / config.scaling_factor + (config.get("shift_factor") or 0.0)
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        parts = latents.split(max(1, DECODE_PIXELS // (height * width)))
        return torch.cat([self.vae.decode(part).sample.float().clamp(-1, 1) for part in parts])


def load_model(source: str, device: torch.device, dtype: torch.dtype) -> SamplingModel:
    """Load a model.

    Args:
        source: pipeline folder (ours or any `PixArtAlphaPipeline`), or the output of `train` or `convert`.
        dtype: of the transformer and the text encoder, float32 or bfloat16; the VAE decodes in float32.

    Raises:
        UserError: not there, class-conditional, encoders that cannot be loaded, or no file of the learned
            unconditional caption that the model was trained with, or another model's.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{source} is not a folder (a pipeline, or the output of pixart train or convert)")
    facts = read_facts(folder)
    if (folder / PIPELINE).is_file():
        facts = _pipeline_facts(folder, facts)
    transformer = load_transformer(folder)
    if not isinstance(transformer, PixArtTransformer):
        raise UserError(
            f"{source} is a class-conditional DiT; `pixart convert --to pixart` makes a text-to-image "
            "model of it"
        )
    learned = read_uncond(folder) if facts.uncond == "learned" else None
    if facts.uncond == "learned" and learned is None:
        raise missing_uncond(source)
    width = transformer.config.caption_channels
    if learned is not None and learned.shape[1] != width:
        raise UserError(
            f"{source}: {UNCOND} has tokens of width {learned.shape[1]}, the model takes {width}: it is "
            "another model's; copy the file from where the checkpoint came from"
        )
    return SamplingModel(
        source=source,
        transformer=transformer.eval().requires_grad_(False).to(device, dtype),
        vae=load_vae(facts.vae, device),
        text_encoder=load_text_encoder(facts.text_encoder, device, dtype),
        facts=facts,
        learned_uncond=learned,
        device=device,
    )


def _pipeline_facts(folder: Path, facts: ModelFacts) -> ModelFacts:
    """A pipeline brings its own encoders, and its scheduler knows what the model predicts."""
    try:
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot read scheduler/scheduler_config.json: {error}") from error
    kind = scheduler.get("prediction_type", "epsilon")
    return dataclasses.replace(facts, prediction_type=kind, vae=str(folder), text_encoder=str(folder))


def pad_tokens(
    tokens: list[Float[Tensor, "l d"]],
) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """Stack token sequences of different lengths; the mask is True on tokens."""
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in tokens])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
