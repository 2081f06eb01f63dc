"""`resolution` and `positions` of `pixart convert`: the same weights under other positions."""

import dataclasses
from typing import Any, NamedTuple

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.encoder_folders import read_config
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.resolution import (
    Resolution,
    change_resolution,
    describe_resolution,
    position_range,
    released_resolution,
)
from pixart_core.recipe.schema import ConvertStep

RELEASED_VAE = ModelFacts().vae
RELEASED_VAE_FACTOR = 8


class Resized(NamedTuple):
    """A model at the resolution that was asked for.

    Attributes:
        facts: with the positions that the weights were trained with, which the config no longer tells.
        changed: what the card says, {"resolution": {"from": ..., "to": ...}}; empty where nothing changed.
        notes: what the user should know, one sentence each.
    """

    model: Transformer
    facts: ModelFacts
    changed: dict[str, Any]
    notes: list[str]


def resize(step: ConvertStep, model: Transformer, facts: ModelFacts) -> Resized:
    """`model` at the resolution that `step` asks for; as it is where it asks for none.

    Raises:
        UserError: the model cannot have that resolution.
    """
    resolution, notes = _wanted(step, facts)
    if resolution is None:
        return Resized(model, facts, {}, [])
    before = model.config
    model = change_resolution(model, resolution, seed=step.seed)
    if model.config == before:
        return Resized(model, facts, {}, [*notes, "the source has the resolution asked for: nothing changed"])
    trained = facts.trained_positions or (before.sample_size, float(before.interpolation_scale))
    facts = dataclasses.replace(facts, trained_positions=trained)
    changed = {"from": describe_resolution(before), "to": describe_resolution(model.config)}
    return Resized(model, facts, {"resolution": changed}, [*notes, _told(before, model.config)])


def _wanted(step: ConvertStep, facts: ModelFacts) -> tuple[Resolution | None, list[str]]:
    if step.positions is not None:
        return Resolution(**step.positions.model_dump()), []
    if step.resolution is None:
        return None, []
    factor, note = _vae_factor(step, facts)
    return released_resolution(step.resolution, factor), note


def _vae_factor(step: ConvertStep, facts: ModelFacts) -> tuple[int, list[str]]:
    """Pixels per latent pixel of the VAE that the model goes with, and how that is known if it is a guess."""
    source = str(step.vae or facts.vae)
    if source == RELEASED_VAE:
        return RELEASED_VAE_FACTOR, []
    try:
        config = read_config(source, "vae")
    except UserError:
        if step.vae is not None:
            raise
        config = None  # a checkpoint may outlive the folder that its VAE lay in
    levels = (config or {}).get("block_out_channels")
    if levels is not None:
        return 2 ** (len(levels) - 1), []
    return RELEASED_VAE_FACTOR, [
        f"resolution {step.resolution}: VAE {source} is not at hand, {RELEASED_VAE_FACTOR} pixels per latent "
        "are assumed (sd-vae-ft-ema's); give vae or positions if that is wrong"
    ]


def _told(before: TransformerConfig, after: TransformerConfig) -> str:
    told = (
        f"positions changed from sample_size {before.sample_size}, scale {before.interpolation_scale:g} to "
        f"sample_size {after.sample_size}, scale {after.interpolation_scale:g}"
    )
    if after.use_additional_conditions and not before.use_additional_conditions:
        told += ", micro-conditions added (silent until trained)"
    old, new = (position_range(c.sample_size, c.patch_size, c.interpolation_scale) for c in (before, after))
    if abs(old - new) <= 1e-6 * new:
        return f"{told}; their range stays {new:g}: on equal latents the output is the same"
    return f"{told}; their range goes from {old:g} to {new:g}, which the weights must be trained for"
