"""What is this file or folder, and the model in it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.artifacts.tensor_file import check_plain
from pixart_core.conversion.infer import KNOWN_HEADS, Hints, UntoldError, infer_config, read_patch_size
from pixart_core.conversion.official import POS_EMBED, Y_EMBEDDING, Kind, from_original, read_positions
from pixart_core.conversion.opened import EXPECTED, Opened, open_source
from pixart_core.conversion.recognise import NO_BASE, base_model, copied_blocks, other_model
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import empty_model

NO_HINTS = Hints()
SIGMA_TOKENS = 300
HOW_TO_CHANGE = "to change it, leave {} out and give resolution=256|512|1024 or positions.sample_size=N"
# A position scale that is no multiple of 1/16 was measured from the table, not read.
POSITIONS_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """Where a model came from.

    Attributes:
        format: whose layout the source has, e.g. "official PixArt in a file".
        used: "ema" or "model", for files that hold both.
        dtype: type of the stored weights, e.g. "float16".
        y_embedding: the learned unconditional caption, if the source has one.
        notes: what the user should know, one sentence each.
    """

    source: str
    format: str
    used: str
    dtype: str
    y_embedding: Tensor | None
    notes: tuple[str, ...]


class Loaded(NamedTuple):
    """A model, what is known about it, and where it came from."""

    model: Transformer
    facts: ModelFacts
    report: SourceReport


def load_any(
    source: str | Path, hints: Hints = NO_HINTS, dtype: torch.dtype | None = torch.float32
) -> Loaded:
    """Load a PixArt or DiT from any format that `open_source` knows, strictly.

    Args:
        dtype: None keeps each weight as it is stored, for who only writes it again: a memory-mapped file
            then takes no memory.

    Raises:
        UserError: see `open_source`; weights that are missing or left over; a config that neither
            the file nor `hints` tell.
    """
    return load_opened(open_source(source, hints.weights), source, hints, dtype)


def load_opened(opened: Opened, source: str | Path, hints: Hints, dtype: torch.dtype | None) -> Loaded:
    """The rest of `load_any`."""
    found = understand(opened, hints)
    model = empty_model(found.config, found.weights, opened.path)
    weights = {name: tensor.to(dtype or tensor.dtype) for name, tensor in found.weights.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    report = SourceReport(
        source=str(source),
        format=opened.layout,
        used=opened.used,
        dtype=dtypes(found.weights),
        y_embedding=found.y_embedding,
        notes=tuple(found.notes),
    )
    return Loaded(model.requires_grad_(True), opened.facts, report)


@dataclasses.dataclass(frozen=True)
class Understood:
    """Weights in our names, each entry of the source accounted for, and the config that they need."""

    config: TransformerConfig
    weights: dict[str, Tensor]
    y_embedding: Tensor | None
    notes: list[str]


def understand(opened: Opened, hints: Hints) -> Understood:
    """Names to ours, and the config; every entry is used or named in an error.

    Raises:
        UserError: see `load_any`.
    """
    _refuse_others(opened)
    for name, tensor in opened.weights.items():
        check_plain(f"{opened.path}: {name}", tensor)
    if opened.format == "diffusers":
        return _understand_diffusers(opened, hints)
    kind: Kind = "pixart" if opened.format == "official PixArt" else "dit"
    renamed = from_original(kind, opened.weights, opened.path)
    positions, notes = _stored_positions(renamed.pos_embed, renamed.weights, opened, hints)
    if opened.has_ema:
        notes.append(f"the file has EMA and plain weights; the {opened.used} weights are used")
    if renamed.y_embedding is not None and renamed.y_embedding.shape[:1] == (SIGMA_TOKENS,):
        notes.append(
            f"{SIGMA_TOKENS} caption tokens are PixArt-Sigma's, which goes with another VAE than "
            "PixArt-alpha: name it with vae"
        )
    config = _checked_config(renamed.weights, positions, opened, hints)
    _check_y_embedding(renamed.y_embedding, config, opened)
    return Understood(config, renamed.weights, renamed.y_embedding, notes)


def untold(opened: Opened) -> tuple[Hints, list[str]]:
    """(any values for what a bare file does not tell, so that the rest can be read; the names of these)."""
    projection = opened.weights.get("pos_embed.proj.weight", opened.weights.get("x_embedder.proj.weight"))
    if opened.config is not None or projection is None or projection.ndim != 4:
        return NO_HINTS, []
    width, patch = projection.shape[0], projection.shape[-1]
    changes: dict[str, Any] = {}
    if not any(name in opened.weights for name in (POS_EMBED, "pos_embed.pos_embed")):
        changes["sample_size"] = 32 * patch
    if width not in KNOWN_HEADS:
        changes["num_attention_heads"] = 1
    return Hints(**changes), list(changes)


def _understand_diffusers(opened: Opened, hints: Hints) -> Understood:
    weights = dict(opened.weights)
    positions, notes = _stored_positions(weights.pop("pos_embed.pos_embed", None), weights, opened, hints)
    config = _checked_config(weights, positions, opened, hints)
    _check_y_embedding(opened.y_embedding, config, opened)
    return Understood(config, weights, opened.y_embedding, notes)


def _check_y_embedding(found: Tensor | None, config: TransformerConfig, opened: Opened) -> None:
    """A learned unconditional caption has tokens as wide as the text encoder's."""
    if found is None or config.conditioning == "class":
        return
    if found.ndim != 2 or not len(found) or found.shape[1] != config.caption_channels:
        raise UserError(
            f"{opened.path}: {Y_EMBEDDING} (the learned unconditional caption) has shape "
            f"{tuple(found.shape)}, expected (tokens, {config.caption_channels})"
        )


def _stored_positions(
    table: Tensor | None, weights: Mapping[str, Tensor], opened: Opened, hints: Hints
) -> tuple[tuple[int, float] | None, list[str]]:
    """((sample_size, interpolation_scale) of a stored position table, notes); None where it tells neither.

    Raises:
        UserError: `hints` say something else than the table, or the table is no grid's and they say nothing.
    """
    patch_size = read_patch_size(weights, opened.path)
    if table is None:
        return None, []
    try:
        positions = read_positions(table, patch_size, opened.path)
    except UntoldError:
        if hints.sample_size is None:
            raise
        size = hints.sample_size
        return None, [
            f"the file's pos_embed is no grid's; that of the sample_size given, {size}, replaces it"
        ]
    for name, stored in zip(("sample_size", "interpolation_scale"), positions, strict=True):
        given = getattr(hints, name)
        if given is not None and abs(given - stored) > POSITIONS_TOLERANCE * stored:
            raise UserError(
                f"{opened.path}: pos_embed is for sample_size {positions[0]} and position scale "
                f"{positions[1]:g}, not {name} {given:g}; {HOW_TO_CHANGE.format(name)}"
            )
    return positions, [
        f"sample_size {positions[0]} and position scale {positions[1]:g} are those of pos_embed"
    ]


def _checked_config(
    weights: Mapping[str, Tensor], positions: tuple[int, float] | None, opened: Opened, hints: Hints
) -> TransformerConfig:
    """The config that the source states, if it agrees with its position table; else what the shapes tell."""
    if opened.config is None:
        return infer_config(weights, opened.path, positions=positions, hints=hints)
    config = _config(opened, hints)
    if positions is not None and not _same_positions(positions, config):
        raise UserError(
            f"{opened.path}: pos_embed is for sample_size {positions[0]} and position scale "
            f"{positions[1]:g}, the config for {config.sample_size} and {config.interpolation_scale:g}"
        )
    return config


def _config(opened: Opened, hints: Hints) -> TransformerConfig:
    assert opened.config is not None
    try:
        config = TransformerConfig.from_diffusers(opened.config)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{opened.path}: config: {error}") from error
    for name in ("sample_size", "interpolation_scale", "num_attention_heads"):
        given, stored = getattr(hints, name), getattr(config, name)
        if given is not None and given != stored:
            how = "leave it out" if name == "num_attention_heads" else HOW_TO_CHANGE.format(name)
            raise UserError(f"{opened.path} says {name} {stored}, not {given}; {how}")
    return config


def _same_positions(positions: tuple[int, float], config: TransformerConfig) -> bool:
    near = abs(positions[1] - config.interpolation_scale) <= POSITIONS_TOLERANCE * config.interpolation_scale
    return positions[0] == config.sample_size and near


def _refuse_others(opened: Opened) -> None:
    if opened.format == "official PixArt ControlNet":
        copies = f"{copied_blocks(opened.weights)} copied blocks"
        if not base_model(opened.weights):
            raise UserError(f"{opened.path} is an official PixArt ControlNet: {copies} {NO_BASE}")
        raise UserError(
            f"{opened.path} is an official PixArt ControlNet: a base model and {copies}; weights=base "
            "converts the base model alone"
        )
    if opened.format == "LoRA adapter":
        raise UserError(
            f"{opened.path} is a LoRA adapter: it changes a model and holds none; convert the model"
        )
    if opened.format == "another model":
        what = other_model(opened.weights) or "another model"
        names = ", ".join(list(opened.weights)[:3])
        raise UserError(f"{opened.path} holds weights of {what} ({names}, ...); {EXPECTED}")


def dtypes(weights: Mapping[str, Tensor]) -> str:
    """Types of the weights, the most frequent one first, e.g. "float16"."""
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.values())
    return ", ".join(name for name, _ in counts.most_common())
