"""DiT, the class-conditional transformer that PixArt starts from (Peebles & Xie, 2023).

With `embedders="per_block"` and `timestep_freq_shift=1` the parameters and the forward pass are those of
diffusers' `DiTTransformer2DModel`; the original shares one embedder (`embedders="shared"`, the default).
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import TimestepClassEmbedding
from pixart_core.models.routing import TokenRoute
from pixart_core.models.transformer import LatentTransformer


class DiTTransformer(LatentTransformer):
    """Predicts the noise (and its variance) of latents from a timestep and a class."""

    def __init__(self, config: TransformerConfig) -> None:
        assert config.conditioning == "class", "DiTTransformer is conditioned on a class"
        super().__init__(config)

    @property
    def null_class(self) -> int:
        """Label of the unconditional branch."""
        return self.config.num_embeds_ada_norm

    def embedder(self, block: int) -> TimestepClassEmbedding:
        """The embedder of t + c that `block` uses; the final layer uses that of block 0."""
        owner: Any = self
        if self.config.embedders == "per_block":
            owner = self.transformer_blocks[block].norm1
        elif self.config.modulation == "adaln_single":
            owner = self.adaln_single
        return owner.emb

    def conditions(
        self, timesteps: Tensor, labels: Int[Tensor, " b"]
    ) -> tuple[list[Tensor], Float[Tensor, "b d"]]:
        """(what each block takes, the embedding that the final layer takes)."""
        depth = self.config.num_layers
        if self.config.embedders == "shared":
            condition, embedding = self.condition(timesteps, labels)
            return [condition] * depth, embedding
        own = [self.embedder(index)(timesteps, labels) for index in range(depth)]
        return own, own[0]

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Tensor,
        labels: Int[Tensor, " b"],
        kept_tokens: Int[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b out h w"]:
        """One denoising prediction; `timesteps` (b,) in 0..999, `labels` up to `null_class` included.

        Args:
            kept_tokens: those that do not skip `routed_blocks` (training only).
        """
        x = self.pos_embed(latents)  # (b, n, d)
        conditions, embedding = self.conditions(timesteps, labels)
        route = TokenRoute(kept_tokens, self.routed_blocks)
        for number, (block, condition) in enumerate(zip(self.transformer_blocks, conditions, strict=True)):
            x = self.run(block, route.before(number, x), condition)
        return self.final_layer(x, embedding, *latents.shape[-2:])
