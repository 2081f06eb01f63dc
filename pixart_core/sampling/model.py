"""A text-to-image model that is ready to draw: its prompts are encoded, the text encoder is gone."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.encoders.offload import letting_go
from pixart_core.encoders.vae import load_vae, vae_downsampling
from pixart_core.models.files import load_transformer
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.memory import MemoryWatch
from pixart_core.sampling.outline import ModelOutline, fetch_weights
from pixart_core.sampling.prompt_tokens import PromptTokens, free

# Pixels that the VAE decodes in one call: it needs some gigabytes for a picture of 1024 x 1024.
DECODE_PIXELS = 1024 * 1024


@dataclasses.dataclass
class SamplingModel:
    """A text-to-image model.

    Attributes:
        source: where it was loaded from.
        learned_uncond: tokens of the learned unconditional caption; None: the empty caption is encoded.
        tokens: of the prompts; None where whoever draws has them.
        vae_waits: the VAE is on `device` only while it decodes.
        memory: what drawing took.
    """

    source: str
    transformer: PixArtTransformer
    vae: Any
    facts: ModelFacts
    learned_uncond: Float[Tensor, "l d"] | None
    device: torch.device
    tokens: PromptTokens | None = None
    vae_waits: bool = False
    memory: MemoryWatch = dataclasses.field(default_factory=lambda: MemoryWatch(torch.device("cpu")))

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

    def encoded(
        self, prompts: list[str], negative_prompt: str
    ) -> tuple[list[Float[Tensor, "l d"]], Float[Tensor, "l d"] | None]:
        """Tokens of each prompt, and of the negative or empty one; None: the learned embedding's turn.

        A negative prompt takes the place of the learned embedding, as it does of the empty caption.
        """
        assert self.tokens is not None
        learned = self.learned_uncond is not None and not negative_prompt.strip()
        return [self.tokens[prompt] for prompt in prompts], None if learned else self.tokens[negative_prompt]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Pictures in [-1, 1] from scaled latents, `DECODE_PIXELS` at a time."""
        config = self.vae.config
        latents = latents.to(self.vae.dtype) / config.scaling_factor + (config.get("shift_factor") or 0.0)
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        parts = latents.split(max(1, DECODE_PIXELS // (height * width)))
        if self.vae_waits:
            self.vae.to(self.device)
        pictures = torch.cat([self.vae.decode(part).sample.float().clamp(-1, 1) for part in parts])
        if self.vae_waits:
            self.vae.to("cpu")
            free()
        return pictures


def load_model(
    outline: ModelOutline,
    tokens: PromptTokens | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    vae_waits: bool = False,
    vae_tiling: bool = False,
    memory: MemoryWatch | None = None,
) -> SamplingModel:
    """Load transformer and VAE.

    Args:
        dtype: of the transformer, float32 or bfloat16; the VAE decodes in float32.
        vae_tiling: decode pictures larger than the VAE was trained for in overlapping tiles (diffusers'
            `enable_tiling`), in less memory.

    Raises:
        UserError: weights that are not there, damaged, or do not fit their config.
    """
    folder = fetch_weights(outline)
    transformer = load_transformer(folder)
    assert isinstance(transformer, PixArtTransformer)
    if (device.type, dtype) != ("cpu", torch.float32):  # else the weights stay pages of their file
        with letting_go({"pretrained_model_name_or_path": str(folder)}):
            transformer.to(device, dtype)
    vae = load_vae(outline.facts.vae, "cpu" if vae_waits else device)
    if vae_tiling:
        vae.enable_tiling()
    return SamplingModel(
        source=outline.source,
        transformer=transformer.eval().requires_grad_(False),
        vae=vae,
        facts=outline.facts,
        learned_uncond=outline.learned_uncond,
        device=device,
        tokens=tokens,
        vae_waits=vae_waits,
        memory=memory or MemoryWatch(device),
    )


def pad_tokens(
    tokens: list[Float[Tensor, "l d"]],
) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """Stack token sequences of different lengths; the mask is True on tokens."""
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in tokens])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
