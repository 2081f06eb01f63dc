"""The transformer as sampling runs it: what stays the same over the steps is computed before the first.

Exact: the output is that of `PixArtTransformer` up to the rounding of sums. Captions are prepared as
`prepare_text` says, the modulation of all steps comes from one pass of its MLP, and because all images of a
batch are at one timestep, scale and shift ride along with the LayerNorm.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixart_core.models.block import TransformerBlock
from pixart_core.models.layers import Attention, FeedForward, Gelu, unpatchify
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.kernels import apply, attention
from pixart_core.sampling.plain import micro_conditions
from pixart_core.sampling.prepared_text import PreparedText, prepare_text

# What is done here in their place.
_KNOWN = (TransformerBlock, Attention, FeedForward, Gelu, nn.Linear, nn.ModuleList, nn.Identity)


class PreparedTransformer:
    """A transformer on given captions and timesteps; its weights are not to change meanwhile.

    Args:
        timesteps: (t,) of all steps.
        negative: caption of each image that guidance leads away from; none without guidance.
        positive: caption of each image.
        resolution: (height, width) in pixels, if the model has micro-conditions.
    """

    def __init__(
        self,
        transformer: PixArtTransformer,
        timesteps: Tensor,
        negative: Sequence[Float[Tensor, "l caption"]],
        positive: Sequence[Float[Tensor, "l caption"]],
        resolution: tuple[int, int] | None = None,
    ) -> None:
        assert can_prepare(transformer)
        self.transformer = transformer
        self.negative = prepare_text(transformer, negative) if negative else []
        self.positive = prepare_text(transformer, positive)
        self._blocks: list[TransformerBlock] = list(transformer.transformer_blocks)  # type: ignore[arg-type]
        condition, embedding = transformer.condition(timesteps, *micro_conditions(resolution, timesteps))
        self.steps = len(timesteps)
        self._condition = condition  # (t, 6, d), or with adaln (t, d)
        self._final = transformer.final_modulation(embedding)  # (t, 2, d)
        if transformer.config.modulation == "adaln_single":
            self._own = torch.stack([block.scale_shift_table for block in self._blocks])  # (blocks, 6, d)

    def modulation(
        self, step: int
    ) -> tuple[Float[Tensor, "blocks 6 d"], Float[Tensor, " d"], Float[Tensor, " d"]]:
        """What of a timestep the rest of the model sees.

        Shift, 1 + scale and gate of self-attention, then of the MLP, in all blocks; shift and 1 + scale
        of the final layer.
        """
        if self.transformer.config.modulation == "adaln_single":
            table = self._own + self._condition[step]
        else:
            table = torch.cat([block.modulation(self._condition[step, None]) for block in self._blocks])
        table[:, 1::3] += 1
        shift, scale = self._final[step]
        return table, shift, 1 + scale

    def __call__(
        self, latents: Float[Tensor, "b c h w"], step: int, *, guided: bool
    ) -> Float[Tensor, "b out h w"]:
        """The prediction at timestep number `step`.

        Args:
            latents: those of the images; if guided twice, first for the negative captions.
        """
        return self.run(latents, *self.modulation(step), guided=guided)

    def run(
        self,
        latents: Float[Tensor, "b c h w"],
        modulation: Float[Tensor, "blocks 6 d"],
        final_shift: Float[Tensor, " d"],
        final_scale: Float[Tensor, " d"],
        *,
        guided: bool,
    ) -> Float[Tensor, "b out h w"]:
        """The prediction with modulations given."""
        model = self.transformer
        captions = [*self.negative, *self.positive] if guided else self.positive
        x = model.pos_embed(latents)
        for number, (block, m) in enumerate(zip(self._blocks, modulation.to(x.dtype), strict=True)):
            x = _run_block(block, x, m, captions, number)
        x = apply(_projection(model), _normalize(x, final_scale, final_shift, 1e-6))
        patch = model.config.patch_size
        return unpatchify(x, latents.shape[-2] // patch, latents.shape[-1] // patch, patch)


def can_prepare(transformer: nn.Module) -> bool:
    """Whether it is text-to-image, and its layers do nothing but what their weights say.

    Not so with weights that FSDP2 shares out between processes, or layers that wrap others or have hooks:
    the weights are read here, and no layer's own forward pass is called.
    """
    if not isinstance(transformer, PixArtTransformer):
        return False
    whole = all(type(parameter.data) is Tensor for parameter in transformer.parameters())
    read = [_projection(transformer), *transformer.transformer_blocks]
    for block in transformer.transformer_blocks:
        read += [module for name in ("attn1", "attn2", "ff") for module in getattr(block, name).modules()]
    return whole and all(type(module) in _KNOWN and not _has_hooks(module) for module in read)


def _has_hooks(module: nn.Module) -> bool:
    """Those of torch, or of accelerate, which takes the place of `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def _run_block(
    block: TransformerBlock,
    x: Float[Tensor, "b n d"],
    modulation: Float[Tensor, "6 d"],
    captions: Sequence[PreparedText],
    number: int,
) -> Float[Tensor, "b n d"]:
    """`TransformerBlock.layers`; `modulation` has 1 + scale where that has scale."""
    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
    normal, heads = _normalize(x, scale_msa, shift_msa, block.norm_eps), block.attn1.num_heads
    q, k, v = (apply(layer, normal) for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v))
    x = torch.addcmul(x, gate_msa, apply(block.attn1.to_out[0], attention(q, k, v, heads)))
    parts = x.split([text.count for text in captions])
    x = torch.cat([text.add(part, number) for text, part in zip(captions, parts, strict=True)])
    normal = _normalize(x, scale_mlp, shift_mlp, block.mlp_norm_eps)
    gelu, _, outer = block.ff.net
    assert isinstance(gelu, Gelu)
    return torch.addcmul(x, gate_mlp, apply(outer, apply(gelu.proj, normal, "gelu")))


def _normalize(x: Tensor, scale: Float[Tensor, " d"], shift: Float[Tensor, " d"], eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], scale, shift, eps)


def _projection(model: PixArtTransformer) -> nn.Module:
    return model.proj_out if model.config.modulation == "adaln_single" else model.proj_out_2
