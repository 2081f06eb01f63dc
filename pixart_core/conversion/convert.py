"""`pixart convert`: DiT to PixArt, and one layout to another."""

import dataclasses
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import made_by, read_card
from pixart_core.artifacts.publish import restore_replaced, staged_folder
from pixart_core.artifacts.uncond import missing_uncond
from pixart_core.conversion.detect import Hints, Loaded, load_any
from pixart_core.conversion.targets import write_target
from pixart_core.errors import UserError
from pixart_core.models.config import TransformerConfig
from pixart_core.models.dit import DiTTransformer
from pixart_core.progress import Progress
from pixart_core.recipe.schema import ConvertStep

# Options that only the step from DiT to PixArt reads.
DIT_ONLY = ("timestep", "class_condition", "shared_mlp", "modulation")
# Those that mean nothing where the modulation stays as it is: the models agree at every timestep then.
SOLVED_ONLY = ("timestep", "shared_mlp")


def run_conversion(step: ConvertStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Convert `step.source` into the folder `output`, which appears whole or not at all.

    Returns:
        "output", "to", "model", "format" (of the source), "parameters", "notes", and for a DiT that became
        a PixArt "reparameterisation": rows of `measure_agreement`.

    Raises:
        UserError: a source that cannot be read, a target that cannot hold it, options that do not apply, or
            an `output` that holds something else.
    """
    refuse_foreign(step, output)
    hints = Hints(step.sample_size, step.interpolation_scale, step.num_attention_heads, step.weights)
    # Weights stay as they are stored, mapped from their file, until each is written.
    loaded = _with_uncond(load_any(str(step.source), hints, dtype=None))
    _check_options(step, loaded)
    progress.say(f"{step.source}: {loaded.report.format}, {loaded.report.dtype}")
    with staged_folder(output) as folder:
        made = write_target(step, loaded, folder, progress)
    made["notes"] = [*loaded.report.notes, *made["notes"]]
    for note in made["notes"]:
        progress.say(note)
    return {"output": str(output), "to": step.to, "format": loaded.report.format} | made


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


def refuse_foreign(step: ConvertStep, output: Path) -> None:
    """What a conversion replaces is whole folders: only its own earlier result may be one.

    Raises:
        UserError: `output` holds anything else, or the source.
    """
    restore_replaced(output)
    if output.exists() and Path(str(step.source)).resolve().is_relative_to(output.resolve()):
        raise UserError(f"the result would replace its own source {step.source}; choose another output")
    if not output.is_dir() or not any(output.iterdir()):
        return
    card = read_card(output)
    if card is None or not made_by(card, step):
        raise UserError(f"{output} is not empty and not the result of this conversion; choose another output")


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
