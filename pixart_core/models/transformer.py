"""What PixArt and DiT share: patches and positions, the stack of blocks, the final layer.

`config.conditioning` (text or class) and `config.modulation` (adaln_single or adaln) decide which parts
there are. Text with adaln_single is PixArt, class with adaln is DiT; the other two are ablations of one half.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixart_core.models.block import AdaLNSingle, TransformerBlock
from pixart_core.models.checkpointing import Checkpointing
from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import CaptionProjection, PatchEmbed, condition_embedding
from pixart_core.models.initialisation import initialise
from pixart_core.models.layers import modulate, modulation_table, normalize, unpatchify


class LatentTransformer(nn.Module):
    """Parts and steps of a transformer on latents; `PixArtTransformer` and `DiTTransformer` order them.

    Parameter names are those of diffusers' `PixArtTransformer2DModel` and `DiTTransformer2DModel`.

    Attributes:
        gradient_checkpointing: see `run_checkpointed`; may be set at any time.
        routed_blocks: see `TokenRoute`; used when a forward pass is given `kept_tokens`, and not otherwise.
    """

    gradient_checkpointing: Checkpointing = "none"
    routed_blocks: range = range(0)

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        single = config.modulation == "adaln_single"
        width, patch_out = config.width, config.patch_size**2 * config.out_channels
        self.pos_embed = PatchEmbed(config)
        if single:
            self.adaln_single = AdaLNSingle(config)
        elif config.embedders == "shared":
            self.emb = condition_embedding(config)
        if config.conditioning == "text":
            self.caption_projection = CaptionProjection(config.caption_channels, width)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        if single:
            self.scale_shift_table = modulation_table(2, width)
            self.proj_out = nn.Linear(width, patch_out)
        else:
            self.proj_out_1 = nn.Linear(width, 2 * width)
            self.proj_out_2 = nn.Linear(width, patch_out)
        initialise(self, width)

    def condition(self, *conditions: Tensor | None) -> tuple[Tensor, Float[Tensor, "b d"]]:
        """(what the blocks take, the embedding that the final layer takes) of timesteps and the rest.

        The blocks take the shared modulation S (b, 6, d), or with adaln the embedding itself.
        """
        if self.config.modulation == "adaln_single":
            return self.adaln_single(*conditions)
        embedding = self.emb(*conditions)
        return embedding, embedding

    def run(self, block: nn.Module, *inputs: Any) -> Float[Tensor, "b n d"]:
        """One block, checkpointed as `gradient_checkpointing` says."""
        return block(*inputs, checkpointing=self.gradient_checkpointing)

    def final_modulation(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b 2 d"]:
        """Shift and scale of the final layer."""
        if self.config.modulation == "adaln_single":
            # The raw embedding: no SiLU, no Linear.
            return self.scale_shift_table + embedding[:, None]
        return self.proj_out_1(F.silu(embedding)).unflatten(-1, (2, -1))

    def final_layer(
        self, x: Float[Tensor, "b n d"], embedding: Float[Tensor, "b d"], height: int, width: int
    ) -> Float[Tensor, "b out h w"]:
        """Tokens to the output for latents of `height` x `width`."""
        shift, scale = self.final_modulation(embedding).to(x.dtype).chunk(2, dim=1)
        project = self.proj_out if self.config.modulation == "adaln_single" else self.proj_out_2
        patches = project(modulate(normalize(x, 1e-6), shift, scale))
        patch = self.config.patch_size
        return unpatchify(patches, height // patch, width // patch, patch)
