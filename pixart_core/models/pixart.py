"""The PixArt-alpha transformer (paper, Figure 4 and section 2.3)."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import padding_bias
from pixart_core.models.routing import TokenRoute
from pixart_core.models.transformer import LatentTransformer


class PixArtTransformer(LatentTransformer):
    """Predicts the noise (and its variance) of latents from a timestep and a caption.

    Parameters have the names of diffusers' `PixArtTransformer2DModel`, so that weights load there as they
    are. `modulation="adaln"` is the paper's ablation with an MLP per block, which diffusers does not have.
    """

    def __init__(self, config: TransformerConfig) -> None:
        assert config.conditioning == "text", "PixArtTransformer is conditioned on text"
        super().__init__(config)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Tensor,
        text_embeds: Float[Tensor, "b l caption"],
        text_mask: Bool[Tensor, "b l"] | None = None,
        resolution: Float[Tensor, "b 2"] | None = None,
        aspect_ratio: Float[Tensor, "b 1"] | None = None,
        kept_tokens: Int[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b out h w"]:
        """One denoising prediction.

        Args:
            latents: of any size whose sides are multiples of the patch.
            timesteps: (b,) in 0..999.
            text_mask: True on caption tokens; None when there is no padding.
            resolution, aspect_ratio: (height, width) in pixels and height / width; only with
                `use_additional_conditions`.
            kept_tokens: those that do not skip `routed_blocks` (training only).
        """
        x = self.pos_embed(latents)  # (b, n, d)
        modulation, embedding = self.condition(timesteps, resolution, aspect_ratio)
        text = self.caption_projection(text_embeds)  # (b, l, d)
        text_bias = None if text_mask is None else padding_bias(text_mask, text.dtype)

        route = TokenRoute(kept_tokens, self.routed_blocks)
        for number, block in enumerate(self.transformer_blocks):
            x = self.run(block, route.before(number, x), modulation, text, text_bias)

        return self.final_layer(x, embedding, *latents.shape[-2:])
