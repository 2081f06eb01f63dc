"""`pixart convert`: DiT to PixArt, and one layout to another."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pixart_core.artifacts.card import card_for, made_by, read_card
from pixart_core.artifacts.checkpoint import TRANSFORMER, ModelFacts
from pixart_core.artifacts.publish import restore_replaced, staged_folder, write_json
from pixart_core.artifacts.uncond import missing_uncond, write_uncond
from pixart_core.conversion.agreement import TIMESTEPS, format_table, measure_agreement, plot_agreement
from pixart_core.conversion.detect import Hints, Loaded, load_any
from pixart_core.conversion.encoder_folders import read_config, text_width
from pixart_core.conversion.export import write_official
from pixart_core.conversion.from_dit import pixart_from_dit, with_definition
from pixart_core.conversion.opened import OFFICIAL_CARD
from pixart_core.conversion.pipeline import write_dit_folder, write_pipeline
from pixart_core.conversion.resize import resize
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.files import save_transformer
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.progress import Progress
from pixart_core.recipe.schema import ConvertStep

T5_XXL_WIDTH = 4096
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ERRORS_FILE, ERRORS_PLOT = "reparameterisation.json", "reparameterisation.png"
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
    loaded = _with_uncond(load_any(str(step.source), hints))
    _check_options(step, loaded)
    progress.say(f"{step.source}: {loaded.report.format}, {loaded.report.dtype}")
    with staged_folder(output) as folder:
        if step.to == "diffusers":
            made = _to_diffusers(step, loaded, folder)
        elif step.to == "official":
            made = _to_official(step, loaded, folder)
        else:
            made = _to_checkpoint(step, loaded, folder, progress)
    for note in (*loaded.report.notes, *made.pop("notes", ())):
        made.setdefault("notes", []).append(note)
        progress.say(note)
    return {
        "output": str(output),
        "to": step.to,
        "format": loaded.report.format,
        "parameters": count_parameters(loaded.model),
        "notes": [],
    } | made


def count_parameters(model: Transformer) -> int:
    """Trainable numbers of `model`."""
    return sum(parameter.numel() for parameter in model.parameters())


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
    if step.to == "official" and (step.vae or step.text_encoder):
        raise UserError("vae and text_encoder: an official file holds neither; leave them out")


def _check_modulation(step: ConvertStep, config: TransformerConfig, given: list[str]) -> None:
    if step.to != "pixart" and config.diffusers_class is None:
        raise UserError(
            f"{step.source} has conditioning {config.conditioning} and modulation {config.modulation}; "
            "neither diffusers nor the original code has such a model: use to=pixart"
        )
    unused = [name for name in given if name in SOLVED_ONLY]
    if unused and config.modulation == step.modulation:
        raise UserError(
            f"{', '.join(unused)}: not with modulation={step.modulation}, which {step.source} has too: "
            "the result equals it at every timestep"
        )


def _facts(step: ConvertStep, loaded: Loaded) -> ModelFacts:
    """What the source says, but for the encoders that the step names."""
    vae, text_encoder = step.vae or loaded.facts.vae, step.text_encoder or loaded.facts.text_encoder
    return dataclasses.replace(loaded.facts, vae=str(vae), text_encoder=str(text_encoder))


def _card_details(facts: ModelFacts, loaded: Loaded, changed: dict[str, Any]) -> dict[str, Any]:
    report = loaded.report
    source = {"format": report.format, "dtype": report.dtype, "weights": report.used}
    return facts.to_details() | {"converted_from": source} | ({"changed": changed} if changed else {})


def _to_checkpoint(step: ConvertStep, loaded: Loaded, folder: Path, progress: Progress) -> dict[str, Any]:
    model, facts = loaded.model, _facts(step, loaded)
    made: dict[str, Any] = {"model": "PixArt"}
    details: dict[str, Any] = {}
    if isinstance(model, DiTTransformer):
        facts = dataclasses.replace(facts, label_names=(), uncond="empty")
        model, made = _reparameterise(step, model, facts, folder, progress)
        exact = loaded.model.config.modulation == step.modulation
        details["timestep_of_agreement"] = "all" if exact else step.timestep
    elif loaded.report.y_embedding is not None:
        write_uncond(folder, loaded.report.y_embedding)
    model, facts, changed, notes = resize(step, model, facts)
    made["notes"] = made.get("notes", []) + notes
    save_transformer(model.config, model.state_dict(), folder / TRANSFORMER, DTYPES[step.dtype])
    details |= _card_details(facts, loaded, changed) | {"parameters": count_parameters(model)}
    card_for("checkpoint", step, details).write(folder)
    return made | {"parameters": details["parameters"]}


def _reparameterise(
    step: ConvertStep, dit: DiTTransformer, facts: ModelFacts, folder: Path, progress: Progress
) -> tuple[PixArtTransformer, dict[str, Any]]:
    dit, reason = with_definition(dit, step.dit_definition)
    pixart = pixart_from_dit(
        dit,
        caption_channels=_caption_channels(step, facts),
        modulation=step.modulation,
        timestep=step.timestep,
        class_condition=step.class_condition,
        shared_mlp=step.shared_mlp,
        seed=step.seed,
    )
    rows = measure_agreement(
        dit,
        pixart,
        class_condition=step.class_condition,
        timesteps=tuple(sorted({*TIMESTEPS, step.timestep})),
        seed=step.seed,
        progress=progress,
    )
    progress.say("relative error against the DiT\n" + format_table(rows))
    write_json(folder / ERRORS_FILE, rows)
    exact = dit.config.modulation == step.modulation
    plot_agreement(rows, folder / ERRORS_PLOT, None if exact else step.timestep)
    return pixart, {"model": "PixArt", "reparameterisation": rows, "notes": [reason] if reason else []}


def _caption_channels(step: ConvertStep, facts: ModelFacts) -> int:
    """Width of the text encoder's tokens: as given, as the encoder says, or that of T5 XXL.

    Raises:
        UserError: what is given is not what the encoder says.
    """
    source = facts.text_encoder
    known = step.text_encoder is not None or Path(source).is_dir()
    config = read_config(source, "text_encoder") if known else None
    width = text_width(config) if config else None
    if width is not None and step.caption_channels not in (None, width):
        raise UserError(
            f"caption_channels is {step.caption_channels}, but the text encoder {source} has "
            f"tokens of width {width}; set caption_channels={width}"
        )
    return step.caption_channels or width or T5_XXL_WIDTH


def _to_diffusers(step: ConvertStep, loaded: Loaded, folder: Path) -> dict[str, Any]:
    model, facts, changed, notes = resize(step, loaded.model, _facts(step, loaded))
    if isinstance(model, DiTTransformer):
        write_dit_folder(folder, model, DTYPES[step.dtype])
        card_for("checkpoint", step, _card_details(facts, loaded, changed)).write(folder)
        return {"model": "DiT", "notes": notes}
    try:
        details = write_pipeline(
            folder,
            model,
            facts,
            vae=facts.vae,
            text_encoder=facts.text_encoder,
            y_embedding=loaded.report.y_embedding,
            dtype=DTYPES[step.dtype],
        )
    except UserError as error:
        silent = [name for name in ("vae", "text_encoder") if getattr(step, name) is None]
        if not silent:
            raise
        named = ", ".join(f"{name}={getattr(facts, name)}" for name in silent)
        raise UserError(f"{error} ({named} is what the source names; give others if need be)") from error
    card_for("pipeline", step, _card_details(facts, loaded, changed) | details).write(folder)
    notes += _what_diffusers_does_instead(model.config, facts)
    parameters = count_parameters(model)
    return {"model": "PixArt", "size": details["size"], "parameters": parameters, "notes": notes}


def _what_diffusers_does_instead(config: TransformerConfig, facts: ModelFacts) -> list[str]:
    notes = []
    if facts.uncond == "learned":
        notes.append(
            "the model was trained with a learned unconditional caption: diffusers encodes the empty one "
            "instead; `pixart sample` uses uncond.safetensors"
        )
    if config.use_additional_conditions and config.sample_size != 128:
        notes.append(
            "PixArtAlphaPipeline gives sizes to models of sample_size 128 only, so diffusers cannot run this "
            f"one, with micro-conditions and sample_size {config.sample_size}; `pixart sample` can"
        )
    return notes


def _to_official(step: ConvertStep, loaded: Loaded, folder: Path) -> dict[str, Any]:
    model, facts, changed, notes = resize(step, loaded.model, loaded.facts)
    if isinstance(model, DiTTransformer):
        model, reason = with_definition(model, step.dit_definition)
        notes += [reason] if reason else []
    path, more = write_official(folder, model, facts, loaded.report.y_embedding, DTYPES[step.dtype])
    card_for(OFFICIAL_CARD, step, _card_details(facts, loaded, changed) | {"file": path.name}).write(folder)
    kind = "DiT" if isinstance(model, DiTTransformer) else "PixArt"
    parameters = count_parameters(model)
    return {"model": kind, "file": path.name, "parameters": parameters, "notes": notes + more}
