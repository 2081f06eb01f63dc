"""What is this file or folder, and the model in it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.infer import Hints, UntoldError, infer_config
from pixart_core.conversion.official import Kind, from_original, read_positions
from pixart_core.conversion.opened import EXPECTED, Opened, open_source
from pixart_core.conversion.recognise import copied_blocks, other_model
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import check_weights

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
    opened = open_source(source, hints.weights)
    found = understand(opened, hints)
    with torch.device("meta"):
        model = build_transformer(found.config)
    check_weights(model, found.weights, opened.path)
    weights = {name: tensor.to(dtype or tensor.dtype) for name, tensor in found.weights.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    report = SourceReport(
        source=str(source),
        format=f"{opened.format} ({opened.container})",
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
    integers = [name for name, tensor in opened.weights.items() if not tensor.is_floating_point()]
    if integers:
        kinds = dtypes({name: opened.weights[name] for name in integers})
        raise UserError(f"{opened.path}: {integers[0]} is stored as {kinds}, which are no weights")
    if opened.format == "diffusers":
        return _understand_diffusers(opened, hints)
    kind: Kind = "pixart" if opened.format == "official PixArt" else "dit"
    renamed = from_original(kind, opened.weights, opened.path)
    positions, notes = _stored_positions(renamed.pos_embed, renamed.weights, opened, hints)
    if opened.has_ema:
        notes.append(f"the file has EMA and plain weights; the {opened.used} weights are used")
    if renamed.y_embedding is not None and len(renamed.y_embedding) == SIGMA_TOKENS:
        notes.append(
            f"{SIGMA_TOKENS} caption tokens are PixArt-Sigma's, which goes with another VAE than "
            "PixArt-alpha: name it with vae"
        )
    config = _checked_config(renamed.weights, positions, opened, hints)
    return Understood(config, renamed.weights, renamed.y_embedding, notes)


def _understand_diffusers(opened: Opened, hints: Hints) -> Understood:
    weights = dict(opened.weights)
    positions, notes = _stored_positions(weights.pop("pos_embed.pos_embed", None), weights, opened, hints)
    config = _checked_config(weights, positions, opened, hints)
    return Understood(config, weights, opened.y_embedding, notes)


def _stored_positions(
    table: Tensor | None, weights: Mapping[str, Tensor], opened: Opened, hints: Hints
) -> tuple[tuple[int, float] | None, list[str]]:
    """((sample_size, interpolation_scale) of a stored position table, notes); None where it tells neither.

    Raises:
        UserError: `hints` say something else than the table, or the table is no grid's and they say nothing.
    """
    projection = weights.get("pos_embed.proj.weight")
    if table is None or projection is None:
        return None, []
    try:
        positions = read_positions(table, projection.shape[-1], opened.path)
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
        raise UserError(
            f"{opened.path} is an official PixArt ControlNet: a base model and "
            f"{copied_blocks(opened.weights)} copied blocks; weights=base converts the base model alone"
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
