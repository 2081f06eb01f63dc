"""What `pixart convert` reads and refuses before it writes anything; its dry run is this alone."""

import dataclasses

import torch

from pixart_core.artifacts.uncond import missing_uncond
from pixart_core.conversion.detect import Loaded, load_opened, untold
from pixart_core.conversion.encoder_folders import read_config
from pixart_core.conversion.export import check_dit
from pixart_core.conversion.from_dit import config_from_dit, with_definition
from pixart_core.conversion.infer import Hints
from pixart_core.conversion.opened import open_source
from pixart_core.conversion.pipeline import check_dit_folder, check_encoders
from pixart_core.conversion.reparameterise import caption_width
from pixart_core.conversion.resize import resize
from pixart_core.conversion.targets import facts_for, naming_encoders
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.dit import DiTTransformer
from pixart_core.recipe.schema import ConvertStep

# Options that only the step from DiT to PixArt reads.
DIT_ONLY = ("timestep", "class_condition", "shared_mlp", "modulation")
# Those that mean nothing where the modulation stays as it is: the models agree at every timestep then.
SOLVED_ONLY = ("timestep", "shared_mlp")


def prepare(step: ConvertStep) -> Loaded:
    """The source of `step`, after all that can be refused without writing.

    Raises:
        UserError: a source that cannot be read, a target that cannot hold it, options that do not apply or
            are missing.
    """
    opened = open_source(str(step.source), step.weights)
    missing = [name for name in untold(opened)[1] if getattr(step, name) is None]
    if missing:
        raise UserError(f"{step.source} does not tell {' and '.join(missing)}; give {'=, '.join(missing)}=")
    hints = Hints(step.sample_size, step.interpolation_scale, step.num_attention_heads, step.weights)
    # Weights stay as they are stored, mapped from their file, until each is written.
    loaded = _with_uncond(load_opened(opened, str(step.source), hints, dtype=None))
    _check_options(step, loaded)
    _check_target(step, loaded)
    return loaded


def _check_target(step: ConvertStep, loaded: Loaded) -> None:
    """Refuse what the target cannot hold, as far as names, shapes and configs at hand tell."""
    model, facts = loaded.model, facts_for(step, loaded)
    if isinstance(model, DiTTransformer):
        if step.to != "diffusers":
            model, _ = with_definition(model, step.dit_definition)
        if step.to == "pixart":
            width = caption_width(step, dataclasses.replace(facts, label_names=(), uncond="empty"))
            config = config_from_dit(model, caption_channels=width, modulation=step.modulation)
            with torch.device("meta"):
                model = build_transformer(config)
    model = resize(step, model, facts).model
    if isinstance(model, DiTTransformer):
        if step.to == "official":
            check_dit(model)
        elif step.to == "diffusers":
            check_dit_folder(model.config, force=step.dit_definition == "diffusers")
    elif step.to == "diffusers":
        with naming_encoders(step, facts):
            vae, text_encoder = read_config(facts.vae, "vae"), read_config(facts.text_encoder, "text_encoder")
            check_encoders(model.config, facts.vae, vae, facts.text_encoder, text_encoder)


def _with_uncond(loaded: Loaded) -> Loaded:
    """`loaded`, its learned unconditional caption there if and only if the model was trained with it.

    Raises:
        UserError: it is lost.
    """
    if isinstance(loaded.model, DiTTransformer):
        return loaded
    if loaded.facts.uncond == "empty":  # an official file has a y_embedding, of zeros then
        return loaded._replace(report=dataclasses.replace(loaded.report, y_embedding=None))
    if loaded.report.y_embedding is None:
        raise missing_uncond(loaded.report.source)
    return loaded


def _check_options(step: ConvertStep, loaded: Loaded) -> None:
    """Refuse options that this conversion would silently not use."""
    reparameterised = isinstance(loaded.model, DiTTransformer) and step.to == "pixart"
    fields = type(step).model_fields
    unused = [name for name in DIT_ONLY if getattr(step, name) != fields[name].default]
    if unused and not reparameterised:
        raise UserError(
            f"{', '.join(unused)}: only for a DiT that becomes a PixArt; {step.source} is "
            f"{loaded.report.format} and goes to {step.to}"
        )
    _check_modulation(step, loaded.model.config, unused)
    if not isinstance(loaded.model, DiTTransformer):
        width, given = loaded.model.config.caption_channels, step.caption_channels
        if given not in (width, None):
            raise UserError(f"{step.source} has caption_channels {width}, not {given}")
    _check_target_options(step, isinstance(loaded.model, DiTTransformer))


def _check_target_options(step: ConvertStep, is_dit: bool) -> None:
    if step.to == "dit" and not is_dit:
        raise UserError(f"{step.source} is a PixArt: to=dit is for class-conditional models; use to=pixart")
    default = type(step).model_fields["max_shard_size"].default
    if step.to == "official" and (step.vae or step.text_encoder):
        raise UserError("vae and text_encoder: an official file holds neither; leave them out")
    if step.to == "official" and step.max_shard_size != default:
        raise UserError("max_shard_size: an official file is one file; leave it out")
    if is_dit and step.to != "pixart" and (step.text_encoder or step.caption_channels):
        raise UserError(
            "text_encoder and caption_channels: a class-conditional DiT reads no text; leave them out"
        )
    if not is_dit and step.dit_definition != "auto":
        raise UserError(f"dit_definition: {step.source} is no DiT; leave it out")


def _check_modulation(step: ConvertStep, config: TransformerConfig, given: list[str]) -> None:
    if step.to in ("diffusers", "official") and config.diffusers_class is None:
        own = "to=pixart" if config.conditioning == "text" else "to=pixart or to=dit"
        raise UserError(
            f"{step.source} has conditioning {config.conditioning} and modulation {config.modulation}; "
            f"neither diffusers nor the original code has such a model: use {own}"
        )
    unused = [name for name in given if name in SOLVED_ONLY]
    if unused and config.modulation == step.modulation:
        raise UserError(
            f"{', '.join(unused)}: not with modulation={step.modulation}, which {step.source} has too: "
            "the result equals it at every timestep"
        )
