"""Names of the original PixArt `.pth` and DiT `.pt` files, to ours (diffusers') and back, bit for bit."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.conversion.infer import UntoldError
from pixart_core.errors import UserError
from pixart_core.models.embeddings import sincos_positions
from pixart_core.models.files import BLOCKS, count_blocks, some_of

Kind = Literal["pixart", "dit"]
POS_EMBED = "pos_embed"
Y_EMBEDDING = "y_embedder.y_embedding"
WITHOUT_TABLE = "to use the file without it, give sample_size and interpolation_scale"
# What both models have, and what only one of them has.
_FRAME = ("x_embedder.proj.", "t_embedder.mlp.", "blocks.", "final_layer.")
_MARKS: dict[Kind, tuple[str, ...]] = {
    "pixart": ("t_block.", "y_embedder.y_proj.", ".cross_attn."),
    "dit": ("y_embedder.embedding_table.", ".adaLN_modulation."),
}
# Rounding of a stored position table, by type: fp32 from numpy's or torch's sine, or cast to half.
POSITION_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One module of the original layout and the module(s) of ours that it is cut into along dim 0."""

    original: str
    ours: tuple[str, ...]
    parameters: tuple[str, ...] = ("weight", "bias")


@dataclasses.dataclass(frozen=True)
class Renamed:
    """Weights in our names and what the original file held beside them.

    Attributes:
        pos_embed: (1, n, D) position table, a buffer that we compute.
        y_embedding: (tokens, caption channels) learned unconditional caption (PixArt only).
    """

    weights: dict[str, Tensor]
    pos_embed: Float[Tensor, "1 n d"] | None
    y_embedding: Float[Tensor, "l caption"] | None


def rules(kind: Kind, depth: int, micro_conditions: bool = False) -> Iterator[Rule]:
    """Every module of a PixArt or DiT of `depth` blocks."""
    yield Rule("x_embedder.proj", ("pos_embed.proj",))
    embedder = "adaln_single.emb" if kind == "pixart" else "emb"
    yield from _mlp("t_embedder.mlp", f"{embedder}.timestep_embedder")
    if kind == "pixart":
        yield Rule("t_block.1", ("adaln_single.linear",))
        yield Rule("y_embedder.y_proj.fc1", ("caption_projection.linear_1",))
        yield Rule("y_embedder.y_proj.fc2", ("caption_projection.linear_2",))
        if micro_conditions:
            yield from _mlp("csize_embedder.mlp", "adaln_single.emb.resolution_embedder")
            yield from _mlp("ar_embedder.mlp", "adaln_single.emb.aspect_ratio_embedder")
    else:
        yield Rule("y_embedder.embedding_table", ("emb.class_embedder.embedding_table",), ("weight",))
    for index in range(depth):
        yield from _block(kind, f"blocks.{index}", f"transformer_blocks.{index}")
    if kind == "pixart":
        yield Rule("final_layer", ("",), ("scale_shift_table",))
        yield Rule("final_layer.linear", ("proj_out",))
    else:
        yield Rule("final_layer.adaLN_modulation.1", ("proj_out_1",))
        yield Rule("final_layer.linear", ("proj_out_2",))


def _block(kind: Kind, original: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{original}.attn.qkv", tuple(f"{ours}.attn1.to_{part}" for part in "qkv"))
    yield Rule(f"{original}.attn.proj", (f"{ours}.attn1.to_out.0",))
    yield Rule(f"{original}.mlp.fc1", (f"{ours}.ff.net.0.proj",))
    yield Rule(f"{original}.mlp.fc2", (f"{ours}.ff.net.2",))
    if kind == "dit":
        yield Rule(f"{original}.adaLN_modulation.1", (f"{ours}.norm1.linear",))
        return
    yield Rule(original, (ours,), ("scale_shift_table",))
    yield Rule(f"{original}.cross_attn.q_linear", (f"{ours}.attn2.to_q",))
    yield Rule(f"{original}.cross_attn.kv_linear", tuple(f"{ours}.attn2.to_{part}" for part in "kv"))
    yield Rule(f"{original}.cross_attn.proj", (f"{ours}.attn2.to_out.0",))


def _mlp(original: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{original}.0", (f"{ours}.linear_1",))
    yield Rule(f"{original}.2", (f"{ours}.linear_2",))


def original_kind(names: Iterable[str]) -> Kind | None:
    """Which original model these names are of; None when neither.

    No single name decides, so that a file that lacks one is told of what is missing.
    """
    known = list(names)
    frame = sum(any(name.startswith(part) for name in known) for part in _FRAME)
    if frame < len(_FRAME) - 1:
        return None
    for kind, marks in _MARKS.items():
        if any(mark in name for name in known for mark in marks):
            return kind
    return None


def from_original(kind: Kind, weights: Mapping[str, Tensor], source: object) -> Renamed:
    """Original names to ours. Every entry is used.

    Raises:
        UserError: an entry is missing or left over (named), or cannot be cut as it should.
    """
    left = dict(weights)
    missing: list[str] = []
    renamed: dict[str, Tensor] = {}
    micro_conditions = any(name.startswith(("csize_embedder.", "ar_embedder.")) for name in weights)
    for rule in rules(kind, count_blocks(weights, "blocks.", source), micro_conditions):
        for parameter in rule.parameters:
            name = f"{rule.original}.{parameter}"
            tensor = left.pop(name, None)
            if tensor is None:
                missing.append(name)
                continue
            if tensor.ndim == 0 or len(tensor) % len(rule.ours):
                raise UserError(
                    f"{source}: {name} {tuple(tensor.shape)} cannot be cut into {len(rule.ours)} parts"
                )
            for target, part in zip(rule.ours, tensor.chunk(len(rule.ours)), strict=True):
                renamed[f"{target}.{parameter}".lstrip(".")] = part
    pos_embed, y_embedding = left.pop(POS_EMBED, None), None
    if kind == "pixart":
        y_embedding = left.pop(Y_EMBEDDING, None)
    problems = [
        f"{what}: {some_of(sorted(names))}"
        for what, names in (("missing", missing), ("left over", list(left)))
        if names
    ]
    if problems:
        model = "PixArt" if kind == "pixart" else "DiT"
        raise UserError(f"{source}: not all of an original {model}; " + "; ".join(problems))
    return Renamed(renamed, pos_embed, y_embedding)


def to_original(kind: Kind, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names to the original ones; the inverse of `from_original` but for the two buffers."""
    left = dict(weights)
    micro_conditions = "adaln_single.emb.resolution_embedder.linear_1.weight" in weights
    renamed: dict[str, Tensor] = {}
    for rule in rules(kind, count_blocks(weights, BLOCKS, "the model"), micro_conditions):
        for parameter in rule.parameters:
            parts = [left.pop(f"{ours}.{parameter}".lstrip(".")) for ours in rule.ours]
            renamed[f"{rule.original}.{parameter}"] = torch.cat(parts) if len(parts) > 1 else parts[0]
    assert not left, f"no original name for {sorted(left)[:5]}"
    return renamed


def position_table(width: int, sample_size: int, patch_size: int, scale: float) -> Float[Tensor, "1 n d"]:
    """The `pos_embed` buffer of an original file: a square grid at its own base size."""
    side = sample_size // patch_size
    return sincos_positions(width, side, side, base_size=side, interpolation_scale=scale)[None]


def read_positions(table: Float[Tensor, "1 n d"], patch_size: int, source: object) -> tuple[int, float]:
    """(sample_size, interpolation_scale) that a stored position table was computed for.

    Base size and grid are equal, so the scale follows from the first frequency; the whole table is
    then compared.

    Raises:
        UntoldError: no square grid, or not the sin-cos table of any scale.
    """
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[2] % 4:
        shape = tuple(table.shape)
        raise UntoldError(f"{source}: pos_embed has shape {shape}, expected (1, n, width); {WITHOUT_TABLE}")
    side = round(table.shape[1] ** 0.5)
    if side * side != table.shape[1]:
        count = table.shape[1]
        raise UntoldError(f"{source}: pos_embed has {count} positions, which is no square; {WITHOUT_TABLE}")
    width, stored = table.shape[2], table.float()
    measured = _measured_scale(stored, side)
    # Far positions multiply rounding, so a half-precision table is compared more loosely.
    tolerance = POSITION_TOLERANCE.get(table.dtype, 1e-4) * max(1.0, side / 16)
    error = float("inf")
    near: float | None = None
    # As people write scales: 1, 1.5, 2; then decimals. The one that gives the very table is taken.
    for scale in (max(round(measured * 16), 1) / 16, round(measured, 2), round(measured, 4), measured):
        if scale <= 0:
            continue
        expected = position_table(width, side * patch_size, patch_size, scale)
        if torch.equal(expected.to(table.dtype), table):
            return side * patch_size, scale
        off = (stored - expected).abs().max().item()
        if off <= tolerance and near is None:
            near = scale
        error = min(error, off)
    if near is not None:
        return side * patch_size, near
    raise UntoldError(
        f"{source}: pos_embed is not the sin-cos table of a {side}x{side} grid at any position scale "
        f"(off by {error:.2g}); {WITHOUT_TABLE}"
    )


def _measured_scale(table: Float[Tensor, "1 n d"], side: int) -> float:
    """1 / (angle from column to column at frequency 1), from the whole first row."""
    if side == 1:
        return 1.0
    quarter = table.shape[2] // 4
    phases = torch.atan2(table[0, :side, 0].double(), table[0, :side, quarter].double())
    # The second column gives the angle, the last one its decimals once the turns are counted.
    turns = torch.round((phases[1] * (side - 1) - phases[-1]) / (2 * math.pi))
    angle = ((phases[-1] + 2 * math.pi * turns) / (side - 1)).item()
    return 1.0 / angle if angle > 1e-3 else 1.0
