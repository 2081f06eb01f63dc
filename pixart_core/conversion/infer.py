"""A transformer's config from the shapes of its weights (in our names)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pixart_core.errors import UserError
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import BLOCKS, count_blocks
from pixart_core.sizes import SIZES

PATCHES = "pos_embed.proj.weight"
# Heads of the published sizes (S, B, L, XL), by width; shapes alone do not tell them.
KNOWN_HEADS = {
    size.num_attention_heads * size.attention_head_dim: size.num_attention_heads for size in SIZES.values()
}


class UntoldError(UserError):
    """Something that the file does not tell and a hint would."""


@dataclasses.dataclass(frozen=True)
class Hints:
    """What the user knows and a bare weight file may not tell; None: take it from the file.

    Attributes:
        sample_size: side of the latents that the model was trained on.
        interpolation_scale: position scale; 1 in the 256 and 512 px models, 2 in the 1024 px one.
        num_attention_heads: needed for widths other than those published.
        weights: "ema" or "model", for files that hold both.
    """

    sample_size: int | None = None
    interpolation_scale: float | None = None
    num_attention_heads: int | None = None
    weights: str = "ema"


def infer_config(
    weights: Mapping[str, Tensor],
    source: object,
    *,
    positions: tuple[int, float] | None,
    hints: Hints,
) -> TransformerConfig:
    """The config that `weights` need.

    Args:
        positions: (sample_size, interpolation_scale) read from the file, which no hint contradicts.

    Raises:
        UserError: no PixArt or DiT weights (`UntoldError`: something that neither file nor hints tell).
    """
    patch_size = read_patch_size(weights, source)
    try:
        width, in_channels = weights[PATCHES].shape[:2]
        single = "adaln_single.linear.weight" in weights
        out = weights["proj_out.weight" if single else "proj_out_2.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise UserError(f"{source}: not the weights of a PixArt or DiT ({error})") from error
    sample_size, scale = _positions(source, positions, hints)
    heads = hints.num_attention_heads or KNOWN_HEADS.get(width)
    if heads is None:
        raise UntoldError(
            f"{source}: weights of width {width} do not tell the number of heads; give num_attention_heads"
        )
    if width % heads:
        raise UserError(f"{source}: {heads} heads do not divide the width {width}")
    fields: dict[str, Any] = {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": out // patch_size**2,
        "num_layers": count_blocks(weights, BLOCKS, source),
        "patch_size": patch_size,
        "sample_size": sample_size,
        "interpolation_scale": scale,
        "modulation": "adaln_single" if single else "adaln",
    }
    try:
        if "caption_projection.linear_1.weight" in weights:
            return TransformerConfig(
                **fields,
                caption_channels=weights["caption_projection.linear_1.weight"].shape[1],
                use_additional_conditions=any("resolution_embedder" in name for name in weights),
            )
        return TransformerConfig(**fields, conditioning="class", **_class_fields(weights))
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{source}: not the weights of a PixArt or DiT ({error})") from error


def read_patch_size(weights: Mapping[str, Tensor], source: object) -> int:
    """Side of a patch, from the projection of patches.

    Raises:
        UserError: no such projection, or of a shape that is none.
    """
    projection = weights.get(PATCHES)
    if projection is None:
        raise UserError(f"{source}: not the weights of a PixArt or DiT ('{PATCHES}')")
    shape = tuple(projection.shape)
    if len(shape) != 4 or 0 in shape or shape[2] != shape[3]:
        raise UserError(
            f"{source}: the projection of patches (x_embedder.proj.weight, {PATCHES}) has shape {shape}, "
            "expected (width, channels, patch, patch)"
        )
    return shape[2]


def _positions(source: object, found: tuple[int, float] | None, hints: Hints) -> tuple[int, float]:
    sample_size = hints.sample_size or (found[0] if found else None)
    if sample_size is None:
        raise UntoldError(
            f"{source} does not say which resolution it is for; give sample_size (32 for 256 px, 64 for "
            "512 px, 128 for 1024 px) and interpolation_scale (1, 1 and 2 in the released models)"
        )
    default = found[1] if found else 1.0
    return sample_size, hints.interpolation_scale or default


def _class_fields(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    table = "emb.class_embedder.embedding_table.weight"
    for shared in (table, f"adaln_single.{table}"):
        if shared in weights:
            return {"num_embeds_ada_norm": len(weights[shared]) - 1}
    # diffusers' DiT: one embedder a block, its frequency shift, and its own eps.
    return {
        "num_embeds_ada_norm": len(weights[f"transformer_blocks.0.norm1.{table}"]) - 1,
        "embedders": "per_block",
        "timestep_freq_shift": 1,
        "mlp_norm_eps": 1e-5,
    }
