"""The transformer block of PixArt and DiT, and what modulates it (paper, Figure 4, middle and right)."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixart_core.models.checkpointing import Checkpointing, run_checkpointed
from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import condition_embedding
from pixart_core.models.layers import Attention, FeedForward, modulate, modulation_table, normalize

# (block, checkpointing, *inputs of its layers) to their output
RunLayers: TypeAlias = Callable[..., Tensor]


class AdaLNSingle(nn.Module):
    """adaLN-single (Figure 4, right): one MLP of the timestep gives the modulation that all blocks share."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.emb = condition_embedding(config)
        self.linear = nn.Linear(config.width, 6 * config.width)

    def forward(self, *conditions: Tensor | None) -> tuple[Float[Tensor, "b 6 d"], Float[Tensor, "b d"]]:
        """(S, the embedding that the final layer adds); `conditions` are those of `emb`."""
        embedding = self.emb(*conditions)
        return self.linear(F.silu(embedding)).unflatten(-1, (6, -1)), embedding


class AdaLN(nn.Module):
    """adaLN of DiT: the block's own MLP of the embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.embedders == "per_block":
            self.emb = condition_embedding(config)
        self.linear = nn.Linear(config.width, 6 * config.width)

    def forward(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b 6 d"]:
        return self.linear(F.silu(embedding)).unflatten(-1, (6, -1))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the caption (text only), feed-forward (Figure 4, middle).

    Attributes:
        compiled: what runs instead of `run_layers`; see `compile_blocks`.
    """

    compiled: RunLayers | None = None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.num_attention_heads
        self.adaln_single = single = config.modulation == "adaln_single"
        # As in diffusers' classes; DiT and PixArt themselves have 1e-6 everywhere.
        self.norm_eps = config.mlp_norm_eps if single else 1e-6
        self.mlp_norm_eps = config.mlp_norm_eps
        if not single:
            self.norm1 = AdaLN(config)
        self.attn1 = Attention(width, heads)
        if config.conditioning == "text":
            self.attn2 = Attention(width, heads)
        self.ff = FeedForward(width)
        if single:
            # E(i): what this block adds to the modulation that all blocks share.
            self.scale_shift_table = modulation_table(6, width)

    def modulation(self, condition: Tensor) -> Float[Tensor, "b 6 d"]:
        """S(i): of the shared S (b, 6, d), or with adaLN of the embedding (b, d)."""
        if self.adaln_single:
            return self.scale_shift_table + condition  # g(S, E(i)), g being the sum
        return self.norm1(condition)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Tensor,
        text: Float[Tensor, "b l d"] | None = None,
        text_bias: Float[Tensor, "b 1 1 l"] | None = None,
        *,
        checkpointing: Checkpointing = "none",
    ) -> Float[Tensor, "b n d"]:
        """The block's output; `checkpointing` is the mode of `run_checkpointed`."""
        run = run_layers if self.compiled is None else self.compiled
        return run(self, checkpointing, x, condition, text, text_bias)

    def layers(
        self,
        x: Float[Tensor, "b n d"],
        condition: Tensor,
        text: Float[Tensor, "b l d"] | None,
        text_bias: Float[Tensor, "b 1 1 l"] | None,
    ) -> Float[Tensor, "b n d"]:
        """What a block computes."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (
            self.modulation(condition).to(x.dtype).chunk(6, dim=1)
        )  # each (b, 1, d)
        x = x + gate_msa * self.attn1(modulate(normalize(x, self.norm_eps), shift_msa, scale_msa))
        if text is not None:
            x = x + self.attn2(x, text, text_bias)
        return x + gate_mlp * self.ff(modulate(normalize(x, self.mlp_norm_eps), shift_mlp, scale_mlp))


def run_layers(block: TransformerBlock, checkpointing: Checkpointing, *inputs: Tensor | None) -> Tensor:
    """`block.layers(*inputs)`, checkpointed: what is compiled, so that the compiler knows what to keep."""
    return run_checkpointed(block.layers, *inputs, mode=checkpointing)
