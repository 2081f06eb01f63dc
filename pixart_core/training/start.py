"""Where the weights of a training step come from, and what is known about them."""

import dataclasses
from pathlib import Path

import torch

from pixart_core.artifacts.card import read_card
from pixart_core.artifacts.checkpoint import ModelFacts, read_checkpoint_card
from pixart_core.artifacts.features import FeatureStore
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import load_transformer
from pixart_core.recipe.training import ModelOptions, Positions, TrainStep
from pixart_core.seeding import derive_seed


def start_model(step: TrainStep, store: FeatureStore) -> tuple[Transformer, ModelFacts]:
    """A new model, or that of `step.init` at the resolution of `step.positions`.

    Raises:
        UserError: features and model do not fit together.
    """
    if step.model is not None:
        config = config_for(step.model, store)
        model = _new_model(config, step.seed)
        inherited = ModelFacts(prediction_type=step.prediction_type)
    else:
        assert step.init is not None
        source = Path(str(step.init))
        model = load_transformer(source)
        inherited = read_facts(source)
        if inherited.prediction_type != step.prediction_type:
            raise UserError(
                f"{source} predicts {inherited.prediction_type}, the recipe says "
                f"prediction_type: {step.prediction_type}"
            )
        if step.positions is not None:
            model = with_positions(model, step.positions, seed=step.seed)
    check_fit(model.config, store)
    return model, dataclasses.replace(
        inherited,
        uncond=step.uncond or inherited.uncond,
        vae=store.details["vae"]["source"],
        text_encoder=store.details["text_encoder"]["source"],
        max_tokens=store.max_tokens,
        label_names=store.label_names,
    )


def _new_model(config: TransformerConfig, seed: int) -> Transformer:
    """Weights drawn on the CPU from the recipe's seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return build_transformer(config)


def read_facts(source: Path) -> ModelFacts:
    """Facts of a checkpoint or pipeline of ours; those of the released weights for anything else."""
    card = read_card(source)
    if card is not None and card["kind"] == "pipeline":
        return ModelFacts.from_details(card["details"])
    if card is None and not (source / "checkpoints").is_dir():
        return ModelFacts()
    return ModelFacts.from_details(read_checkpoint_card(source).details)


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
            caption_channels=store.caption_channels,
            use_additional_conditions=options.use_additional_conditions,
            num_embeds_ada_norm=max(1, len(store.label_names)),
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def with_positions(model: Transformer, positions: Positions, *, seed: int = 0) -> Transformer:
    """The same weights at another resolution.

    Positions are computed, not stored, so nothing is lost. New size embedders start with a zero last
    layer: the output does not change at first.
    """
    additional = positions.use_additional_conditions
    if additional is None:
        additional = model.config.use_additional_conditions
    try:
        config = dataclasses.replace(
            model.config,
            sample_size=positions.sample_size,
            interpolation_scale=positions.interpolation_scale,
            use_additional_conditions=additional,
        )
    except ValueError as error:
        raise UserError(f"positions: {error}") from error
    resized = _new_model(config, seed)
    weights = resized.state_dict()
    for name in weights.keys() - model.state_dict().keys():
        if name.endswith("linear_2.weight"):
            torch.nn.init.zeros_(weights[name])
    if model.state_dict().keys() - weights.keys():
        raise UserError("positions: use_additional_conditions cannot be taken away from a checkpoint")
    resized.load_state_dict(weights | model.state_dict(), strict=True)
    return resized


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
