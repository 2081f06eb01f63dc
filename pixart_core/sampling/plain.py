"""The transformer as training runs it, asked step by step: what the faster ways are compared with."""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.model import pad_tokens


class Predict(Protocol):
    """Asks a transformer at timestep number `step`."""

    def __call__(
        self, latents: Float[Tensor, "b c h w"], step: int, *, guided: bool
    ) -> Float[Tensor, "b out h w"]:
        """The prediction.

        Args:
            latents: those of the images; if guided twice, first for the negative captions.
        """
        ...


class PlainTransformer:
    """Arguments are those of `PreparedTransformer`."""

    def __init__(
        self,
        transformer: PixArtTransformer,
        timesteps: Tensor,
        negative: Sequence[Float[Tensor, "l caption"]],
        positive: Sequence[Float[Tensor, "l caption"]],
        resolution: tuple[int, int] | None = None,
    ) -> None:
        self._transformer = transformer
        self._timesteps = timesteps
        self._resolution = resolution
        weight = next(transformer.parameters())
        text, mask = pad_tokens([*negative, *positive])
        self._text, self._mask = text.to(weight.device, weight.dtype), mask.to(weight.device)

    def __call__(
        self, latents: Float[Tensor, "b c h w"], step: int, *, guided: bool
    ) -> Float[Tensor, "b out h w"]:
        """See `Predict`. A step without guidance asks for the prompts alone, which come last."""
        timesteps = self._timesteps[step].expand(len(latents))
        resolution, aspect_ratio = micro_conditions(self._resolution, timesteps)
        text, mask = self._text[-len(latents) :], self._mask[-len(latents) :]
        return self._transformer(latents, timesteps, text, mask, resolution, aspect_ratio)


def micro_conditions(
    resolution: tuple[int, int] | None, timesteps: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b 2"] | None, Float[Tensor, "b 1"] | None]:
    """Size and aspect ratio of the picture for each timestep, as diffusers feeds them."""
    if resolution is None:
        return None, None
    height, width = resolution
    sizes = torch.tensor([[height, width]], dtype=torch.float32, device=timesteps.device)
    ratio = torch.tensor([[height / width]], dtype=torch.float32, device=timesteps.device)
    return sizes.expand(len(timesteps), 2), ratio.expand(len(timesteps), 1)
