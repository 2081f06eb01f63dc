"""The PixArt-alpha transformer (paper, Figure 4 and section 2.3).

Parameter names are those of diffusers' `PixArtTransformer2DModel`, so that weights load there as they are.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import CaptionProjection, PatchEmbed, TimestepSizeEmbedding, padding_bias
from pixart_core.models.initialisation import initialise
from pixart_core.models.layers import Attention, FeedForward, modulate, normalize, unpatchify


class PixArtBlock(nn.Module):
    """Self-attention, cross-attention to the caption, feed-forward (Figure 4, middle)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.num_attention_heads
        self.eps = config.mlp_norm_eps
        self.attn1 = Attention(width, heads)
        self.attn2 = Attention(width, heads)
        self.ff = FeedForward(width)
        # E(i): what this block adds to the modulation that all blocks share.
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        text: Float[Tensor, "b l d"],
        text_bias: Float[Tensor, "b 1 1 l"] | None,
        modulation: Float[Tensor, "b 6 d"],
    ) -> Float[Tensor, "b n d"]:
        # S(i) = g(S, E(i)), g being the sum.
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (
            (self.scale_shift_table + modulation).to(x.dtype).chunk(6, dim=1)
        )  # each (b, 1, d)
        x = x + gate_msa * self.attn1(modulate(normalize(x, self.eps), shift_msa, scale_msa))
        x = x + self.attn2(x, text, text_bias)
        return x + gate_mlp * self.ff(modulate(normalize(x, self.eps), shift_mlp, scale_mlp))


class AdaLNSingle(nn.Module):
    """adaLN-single (Figure 4, right): one MLP of the timestep gives the modulation of all blocks."""

    def __init__(self, width: int, use_additional_conditions: bool) -> None:
        super().__init__()
        self.emb = TimestepSizeEmbedding(width, use_additional_conditions)
        self.linear = nn.Linear(width, 6 * width)

    def forward(
        self, timesteps: Tensor, resolution: Tensor | None, aspect_ratio: Tensor | None
    ) -> tuple[Float[Tensor, "b 6 d"], Float[Tensor, "b d"]]:
        embedding = self.emb(timesteps, resolution, aspect_ratio)
        modulation = self.linear(nn.functional.silu(embedding))
        return modulation.unflatten(-1, (6, -1)), embedding


class PixArtTransformer(nn.Module):
    """Predicts the noise (and its variance) of latents from a timestep and a caption."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.conditioning == "text", "PixArtTransformer is conditioned on text"
        self.config = config
        width = config.width
        self.pos_embed = PatchEmbed(config)
        self.adaln_single = AdaLNSingle(width, config.use_additional_conditions)
        self.caption_projection = CaptionProjection(config.caption_channels, width)
        self.transformer_blocks = nn.ModuleList(PixArtBlock(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels)
        initialise(self, width)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Tensor,
        text_embeds: Float[Tensor, "b l caption"],
        text_mask: Bool[Tensor, "b l"] | None = None,
        resolution: Float[Tensor, "b 2"] | None = None,
        aspect_ratio: Float[Tensor, "b 1"] | None = None,
    ) -> Float[Tensor, "b out h w"]:
        """One denoising prediction.

        Args:
            timesteps: (b,) in 0..999.
            text_mask: True on caption tokens; None when there is no padding.
            resolution, aspect_ratio: (height, width) in pixels and height / width; only with
                `use_additional_conditions`.
        """
        rows, columns = (side // self.config.patch_size for side in latents.shape[-2:])
        x = self.pos_embed(latents)  # (b, n, d)
        modulation, embedding = self.adaln_single(timesteps, resolution, aspect_ratio)
        text = self.caption_projection(text_embeds)
        text_bias = None if text_mask is None else padding_bias(text_mask, text.dtype)

        for block in self.transformer_blocks:
            x = block(x, text, text_bias, modulation)

        # The final layer adds the raw embedding: no SiLU, no Linear.
        shift, scale = (self.scale_shift_table + embedding[:, None]).to(x.dtype).chunk(2, dim=1)
        x = self.proj_out(modulate(normalize(x, 1e-6), shift, scale))
        return unpatchify(x, rows, columns, self.config.patch_size)
