"""DiT, the class-conditional transformer that PixArt starts from (Peebles & Xie, 2023).

With `embedders="per_block"` and `timestep_freq_shift=1` the parameters and the forward pass are those of
diffusers' `DiTTransformer2DModel`; the original shares one embedder (`embedders="shared"`, the default).
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import PatchEmbed, TimestepClassEmbedding
from pixart_core.models.initialisation import initialise
from pixart_core.models.layers import AdaLN, Attention, FeedForward, modulate, normalize, unpatchify


class DiTBlock(nn.Module):
    """Self-attention and feed-forward, modulated by the block's own MLP (adaLN-Zero)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.mlp_norm_eps = config.mlp_norm_eps
        self.norm1 = AdaLN(config)
        self.attn1 = Attention(config.width, config.num_attention_heads)
        self.ff = FeedForward(config.width)

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (
            self.norm1(condition)[:, None].to(x.dtype).chunk(6, dim=-1)
        )  # each (b, 1, d)
        x = x + gate_msa * self.attn1(modulate(normalize(x, 1e-6), shift_msa, scale_msa))
        return x + gate_mlp * self.ff(modulate(normalize(x, self.mlp_norm_eps), shift_mlp, scale_mlp))


class DiTTransformer(nn.Module):
    """Predicts the noise (and its variance) of latents from a timestep and a class."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.conditioning == "class", "DiTTransformer is conditioned on a class"
        self.config = config
        width = config.width
        self.pos_embed = PatchEmbed(config)
        if config.embedders == "shared":
            self.emb = TimestepClassEmbedding(config.num_embeds_ada_norm, width, config.timestep_freq_shift)
        self.transformer_blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, config.patch_size**2 * config.out_channels)
        initialise(self, width)

    @property
    def null_class(self) -> int:
        """Label of the unconditional branch."""
        return self.config.num_embeds_ada_norm

    def embedder(self, block: int) -> TimestepClassEmbedding:
        """The embedder of t + c that `block` uses; the final layer uses that of block 0."""
        if self.config.embedders == "shared":
            return self.emb
        owner: Any = self.transformer_blocks[block]
        return owner.norm1.emb

    def forward(
        self, latents: Float[Tensor, "b c h w"], timesteps: Tensor, labels: Int[Tensor, " b"]
    ) -> Float[Tensor, "b out h w"]:
        """One denoising prediction; `timesteps` (b,) in 0..999, `labels` up to `null_class` included."""
        rows, columns = (side // self.config.patch_size for side in latents.shape[-2:])
        x = self.pos_embed(latents)  # (b, n, d)
        condition = first = self.embedder(0)(timesteps, labels)
        for index, block in enumerate(self.transformer_blocks):
            if self.config.embedders == "per_block" and index:
                condition = self.embedder(index)(timesteps, labels)
            x = block(x, condition)
        shift, scale = self.proj_out_1(nn.functional.silu(first))[:, None].to(x.dtype).chunk(2, dim=-1)
        x = self.proj_out_2(modulate(normalize(x, 1e-6), shift, scale))
        return unpatchify(x, rows, columns, self.config.patch_size)
