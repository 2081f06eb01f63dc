"""What is this file or folder, and the model in it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.infer import Hints, UntoldError, infer_config
from pixart_core.conversion.official import Kind, from_original, read_positions
from pixart_core.conversion.opened import Opened, open_source
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import check_weights

NO_HINTS = Hints()
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
    """A model in float32, what is known about it, and where it came from."""

    model: Transformer
    facts: ModelFacts
    report: SourceReport


def load_any(source: str | Path, hints: Hints = NO_HINTS) -> Loaded:
    """Load a PixArt or DiT from any format that `open_source` knows, strictly.

    Raises:
        UserError: see `open_source`; weights that are missing or left over; a config that neither
            the file nor `hints` tell.
    """
    opened = open_source(source, hints.weights)
    found = _understand(opened, hints)
    with torch.device("meta"):
        model = build_transformer(found.config)
    check_weights(model, found.weights, opened.path)
    weights = {name: tensor.float() for name, tensor in found.weights.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    report = SourceReport(
        source=str(source),
        format=f"{opened.format} ({opened.container})",
        used=opened.used,
        dtype=_dtypes(found.weights),
        y_embedding=found.y_embedding,
        notes=tuple(found.notes),
    )
    return Loaded(model.requires_grad_(True), opened.facts, report)


def describe(source: str | Path, hints: Hints = NO_HINTS) -> dict[str, Any]:
    """What `source` holds, as a JSON-able dict; what is wrong with it is told in "problems".

    Raises:
        UserError: `source` cannot be opened at all.
    """
    opened = open_source(source, hints.weights)
    info: dict[str, Any] = {
        "source": str(source),
        "format": opened.format,
        "container": opened.container,
        "bytes": sum(t.numel() * t.element_size() for t in opened.weights.values()),
        "dtype": _dtypes(opened.weights),
        "ema": opened.has_ema,
        "weights_used": opened.used,
        "problems": [],
        "notes": [],
    }
    try:
        found = _understand(opened, hints)
        with torch.device("meta"):
            check_weights(build_transformer(found.config), found.weights, opened.path)
    except UserError as error:
        info["problems"].append(str(error))
        return info | _counts(opened.weights)
    info["notes"] += found.notes
    info["uncond_embedding"] = None if found.y_embedding is None else list(found.y_embedding.shape)
    return info | _counts(found.weights) | _model_facts(found.config, opened.facts)


@dataclasses.dataclass(frozen=True)
class _Understood:
    config: TransformerConfig
    weights: dict[str, Tensor]  # our names
    y_embedding: Tensor | None
    notes: list[str]


def _understand(opened: Opened, hints: Hints) -> _Understood:
    """Names to ours, and the config; every entry is used or named in an error."""
    if opened.format == "official PixArt ControlNet":
        raise UserError(
            f"{opened.path} is an official PixArt ControlNet (base model and trainable copies); "
            "it is recognised, but only plain PixArt and DiT weights can be converted"
        )
    if opened.format == "diffusers":
        return _understand_diffusers(opened, hints)
    kind: Kind = "pixart" if opened.format == "official PixArt" else "dit"
    renamed = from_original(kind, opened.weights, opened.path)
    positions, notes = _stored_positions(renamed.pos_embed, renamed.weights, opened, hints)
    if opened.has_ema:
        notes.append(f"the file has EMA and plain weights; the {opened.used} weights are used")
    config = _checked_config(renamed.weights, positions, opened, hints)
    return _Understood(config, renamed.weights, renamed.y_embedding, notes)


def _understand_diffusers(opened: Opened, hints: Hints) -> _Understood:
    weights = dict(opened.weights)
    positions, notes = _stored_positions(weights.pop("pos_embed.pos_embed", None), weights, opened, hints)
    config = _checked_config(weights, positions, opened, hints)
    return _Understood(config, weights, opened.y_embedding, notes)


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


def _dtypes(weights: Mapping[str, Tensor]) -> str:
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.values())
    return ", ".join(name for name, _ in counts.most_common())


def _counts(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    parts: Counter[str] = Counter()
    for name, tensor in weights.items():
        parts[name.split(".")[0]] += tensor.numel()
    return {"parameters": dict(parts), "parameters_total": sum(parts.values())}


def _model_facts(config: TransformerConfig, facts: ModelFacts) -> dict[str, Any]:
    text = config.conditioning == "text"
    return {
        "model": "PixArt" if text else "DiT",
        "conditioning": "caption" if text else f"{config.num_embeds_ada_norm} classes",
        "layers": config.num_layers,
        "width": config.width,
        "heads": config.num_attention_heads,
        "patch_size": config.patch_size,
        "latent_channels": config.in_channels,
        "learned_variance": config.learned_variance,
        "caption_channels": config.caption_channels if text else None,
        "micro_conditions": config.use_additional_conditions,
        "sample_size": config.sample_size,
        "interpolation_scale": config.interpolation_scale,
        "resolution_with_8x_vae": 8 * config.sample_size,
        "trained_sizes": [list(size) for size in facts.trained_sizes],
        "trained_positions": facts.trained_positions and list(facts.trained_positions),
        "timestep_freq_shift": config.timestep_freq_shift,
        "embedders": config.embedders if not text else "shared",
        "prediction_type": facts.prediction_type,
        "uncond": facts.uncond if text else "null class",
        "vae": facts.vae,
        "text_encoder": facts.text_encoder if text else None,
    }
