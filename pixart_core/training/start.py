"""Where the weights of a training step come from, and what is known about them."""

import dataclasses
from typing import Any

import torch

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.artifacts.features import FeatureStore
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.resolution import (
    Resolution,
    change_resolution,
    describe_resolution,
    position_range,
)
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.seeding import derive_seed
from pixart_core.training.batches import Unconditional
from pixart_core.training.initial import Initial, ReadInit, read_folder
from pixart_core.training.match import refuse_other_encoders, with_encoders
from pixart_core.training.unconditional import find_unconditional


@dataclasses.dataclass(frozen=True)
class Start:
    """What a training step starts with.

    Attributes:
        facts: of the model as it will be when the training is done.
        unconditional: what dropped captions become; None for a class-conditional model.
        changed: how it differs from `init`: {"resolution" or "uncond": {"from": ..., "to": ...}}.
        notes: what the user should know, one sentence each.
    """

    model: Transformer
    facts: ModelFacts
    unconditional: Unconditional | None
    changed: dict[str, Any]
    notes: tuple[str, ...]


def start_model(step: TrainStep, store: FeatureStore, read_init: ReadInit = read_folder) -> Start:
    """A new model, or that of `step.init` at the resolution of `step.positions`.

    Raises:
        UserError: features and model do not fit together, or what `read_init` raises.
    """
    initial: Initial | None = None
    changed: dict[str, Any] = {}
    if step.model is not None:
        model = _new_model(config_for(step.model, store), step.seed)
        inherited = ModelFacts(prediction_type=step.prediction_type)
    else:
        assert step.init is not None
        initial = read_init(str(step.init))
        inherited = initial.facts
        if inherited.prediction_type != step.prediction_type:
            raise UserError(
                f"{step.init} predicts {inherited.prediction_type}, the recipe says "
                f"prediction_type: {step.prediction_type}"
            )
        model, changed = _changed(initial, step)
    config = model.config
    check_fit(config, store)
    notes = _notes(config, store)
    if initial is not None:
        notes += refuse_other_encoders(step, config, store, inherited)
    facts = dataclasses.replace(
        with_encoders(inherited, config, store),
        uncond=step.uncond or inherited.uncond,
        max_tokens=store.max_tokens,
        label_names=store.label_names,
        trained_sizes=tuple(store.buckets),
        trained_positions=(config.sample_size, float(config.interpolation_scale)),
    )
    return Start(model, facts, find_unconditional(step, store, config, initial), changed, notes)


def _changed(initial: Initial, step: TrainStep) -> tuple[Transformer, dict[str, Any]]:
    """(the model of `init` as the step asks for it, what that changed)."""
    model, before = initial.model, initial.model.config
    changed: dict[str, Any] = {}
    if step.positions is not None:
        model = change_resolution(model, Resolution(**step.positions.model_dump()), seed=step.seed)
    if model.config != before:
        changed["resolution"] = {"from": describe_resolution(before), "to": describe_resolution(model.config)}
    if before.conditioning == "text" and step.uncond not in (None, initial.facts.uncond):
        changed["uncond"] = {"from": initial.facts.uncond, "to": step.uncond}
    return model, changed


def _notes(config: TransformerConfig, store: FeatureStore) -> tuple[str, ...]:
    """Features whose pictures have not the size that the positions are made for."""
    side = config.sample_size * store.vae_downsampling
    if any(side**2 / 2 <= height * width <= side**2 * 2 for height, width in store.buckets):
        return ()
    sizes = ", ".join(f"{height}x{width}" for height, width in list(store.buckets)[:3])
    reach = position_range(config.sample_size, config.patch_size, config.interpolation_scale)
    return (
        f"the features hold pictures of {sizes} px, the model's positions are made for {side}x{side}: their "
        f"range of {reach:g} patches is stretched or squeezed over them (`positions` changes it)",
    )


def _new_model(config: TransformerConfig, seed: int) -> Transformer:
    """Weights drawn on the CPU from the recipe's seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return build_transformer(config)


def config_for(options: ModelOptions, store: FeatureStore) -> TransformerConfig:
    """The config of a new model for these features."""
    channels = store.latent_channels
    if options.conditioning == "class" and not store.label_names:
        raise UserError("conditioning: class needs features with labels (extract-features label_key)")
    try:
        return TransformerConfig(
            num_attention_heads=options.num_attention_heads,
            attention_head_dim=options.attention_head_dim,
            in_channels=channels,
            out_channels=2 * channels if options.learned_variance else channels,
            num_layers=options.num_layers,
            patch_size=options.patch_size,
            sample_size=options.sample_size,
            interpolation_scale=options.interpolation_scale,
            conditioning=options.conditioning,
            modulation=options.modulation,
            caption_channels=store.caption_channels,
            use_additional_conditions=options.use_additional_conditions,
            num_embeds_ada_norm=max(1, len(store.label_names)),
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def check_fit(config: TransformerConfig, store: FeatureStore) -> None:
    """Raises:
    UserError: channels, classes or sizes of the features are not those of the model."""
    if config.in_channels != store.latent_channels:
        raise UserError(
            f"the features hold latents of {store.latent_channels} channels, "
            f"the model takes {config.in_channels}"
        )
    if config.conditioning == "text" and config.caption_channels != store.caption_channels:
        raise UserError(
            f"the features hold captions of width {store.caption_channels}, the model takes "
            f"{config.caption_channels}: another text encoder?"
        )
    if config.conditioning == "class" and (missing := store.unlabelled()):
        raise UserError(f"{missing} of {len(store)} samples have no class; see extract-features label_key")
    if config.conditioning == "class" and config.num_embeds_ada_norm != len(store.label_names):
        raise UserError(
            f"the features hold {len(store.label_names)} classes, the model {config.num_embeds_ada_norm}"
        )
    step = store.vae_downsampling * config.patch_size
    for height, width in store.buckets:
        if height % step or width % step:
            raise UserError(
                f"pictures of {height}x{width} do not divide into patches of {step} px "
                f"(VAE {store.vae_downsampling} x patch {config.patch_size})"
            )
