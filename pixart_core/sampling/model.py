"""Load all that sampling needs from a pipeline folder or a checkpoint of ours."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.encoders.text import TextEncoder, load_text_encoder
from pixart_core.encoders.vae import load_vae, vae_downsampling
from pixart_core.models.files import load_transformer
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.outline import ModelOutline, read_outline

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
    def outline(self) -> ModelOutline:
        """The model without its weights."""
        return ModelOutline(
            self.source, self.transformer.config, self.facts, vae_downsampling(self.vae), self.learned_uncond
        )

    @property
    def pixels_per_latent(self) -> int:
        """Picture pixels per latent pixel, along a side."""
        return vae_downsampling(self.vae)

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
    outline = read_outline(source)
    facts = outline.facts
    transformer = load_transformer(Path(source))
    assert isinstance(transformer, PixArtTransformer)
    return SamplingModel(
        source=source,
        transformer=transformer.eval().requires_grad_(False).to(device, dtype),
        vae=load_vae(facts.vae, device),
        text_encoder=load_text_encoder(facts.text_encoder, device, dtype),
        facts=facts,
        learned_uncond=outline.learned_uncond,
        device=device,
    )


def pad_tokens(
    tokens: list[Float[Tensor, "l d"]],
) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """Stack token sequences of different lengths; the mask is True on tokens."""
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in tokens])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
