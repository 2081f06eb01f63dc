"""What `pixart convert` writes: a checkpoint, a DiT checkpoint, a diffusers folder or an official file."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.checkpoint import TRANSFORMER, ModelFacts
from pixart_core.artifacts.uncond import write_uncond
from pixart_core.conversion.detect import Loaded
from pixart_core.conversion.export import write_official
from pixart_core.conversion.from_dit import with_definition
from pixart_core.conversion.opened import OFFICIAL_CARD
from pixart_core.conversion.pipeline import sizes_are_withheld, write_dit_folder, write_pipeline
from pixart_core.conversion.reparameterise import reparameterise
from pixart_core.conversion.resize import resize
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.files import not_finite_notes, save_transformer
from pixart_core.progress import Progress
from pixart_core.recipe.schema import ConvertStep

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_target(step: ConvertStep, loaded: Loaded, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write what `step.to` names into the empty `folder`, the card last.

    Returns:
        "model", "parameters", "notes" and what else there is to tell.

    Raises:
        UserError: the target cannot hold this model.
    """
    if step.to == "diffusers":
        is_dit = isinstance(loaded.model, DiTTransformer)
        return _dit_folder(step, loaded, folder) if is_dit else _pipeline(step, loaded, folder)
    if step.to == "official":
        return _official(step, loaded, folder)
    if step.to == "dit":
        return _dit_checkpoint(step, loaded, folder)
    return _checkpoint(step, loaded, folder, progress)


def count_parameters(model: Transformer) -> int:
    """Trainable numbers of `model`."""
    return sum(parameter.numel() for parameter in model.parameters())


def _made(model: Transformer, notes: list[str], **more: Any) -> dict[str, Any]:
    kind = "DiT" if isinstance(model, DiTTransformer) else "PixArt"
    return {"model": kind, "parameters": count_parameters(model), "notes": notes} | more


def facts_for(step: ConvertStep, loaded: Loaded) -> ModelFacts:
    """What the source says, but for the encoders that the step names."""
    vae, text_encoder = step.vae or loaded.facts.vae, step.text_encoder or loaded.facts.text_encoder
    return dataclasses.replace(loaded.facts, vae=str(vae), text_encoder=str(text_encoder))


def _card_details(facts: ModelFacts, loaded: Loaded, changed: dict[str, Any]) -> dict[str, Any]:
    report = loaded.report
    source = {"format": report.format, "dtype": report.dtype, "weights": report.used}
    return facts.to_details() | {"converted_from": source} | ({"changed": changed} if changed else {})


def _save(step: ConvertStep, model: Transformer, folder: Path) -> list[str]:
    """Notes for the user."""
    weights, dtype = model.state_dict(), DTYPES[step.dtype]
    place, size = folder / TRANSFORMER, step.max_shard_size
    return not_finite_notes(save_transformer(model.config, weights, place, dtype, size))


def _checkpoint(step: ConvertStep, loaded: Loaded, folder: Path, progress: Progress) -> dict[str, Any]:
    model, facts = loaded.model, facts_for(step, loaded)
    told: dict[str, Any] = {"notes": []}
    details: dict[str, Any] = {}
    if isinstance(model, DiTTransformer):
        facts = dataclasses.replace(facts, label_names=(), uncond="empty")
        model, told = reparameterise(step, model, facts, folder, progress)
        exact = loaded.model.config.modulation == step.modulation
        details["timestep_of_agreement"] = "all" if exact else step.timestep
    elif loaded.report.y_embedding is not None:
        write_uncond(folder, loaded.report.y_embedding)
    model, facts, changed, notes = resize(step, model, facts)
    notes += _save(step, model, folder)
    details |= _card_details(facts, loaded, changed) | {"parameters": count_parameters(model)}
    card_for("checkpoint", step, details).write(folder)
    return told | _made(model, told["notes"] + notes)


def _dit_checkpoint(step: ConvertStep, loaded: Loaded, folder: Path) -> dict[str, Any]:
    assert isinstance(loaded.model, DiTTransformer)
    model, reason = with_definition(loaded.model, step.dit_definition)
    resized, facts, changed, notes = resize(step, model, facts_for(step, loaded))
    notes += _save(step, resized, folder)
    details = _card_details(facts, loaded, changed) | {"parameters": count_parameters(resized)}
    card_for("checkpoint", step, details).write(folder)
    return _made(resized, ([reason] if reason else []) + notes)


def _dit_folder(step: ConvertStep, loaded: Loaded, folder: Path) -> dict[str, Any]:
    model, facts, changed, notes = resize(step, loaded.model, facts_for(step, loaded))
    assert isinstance(model, DiTTransformer)
    force = step.dit_definition == "diffusers"
    notes += write_dit_folder(folder, model, DTYPES[step.dtype], step.max_shard_size, force=force)
    card_for("checkpoint", step, _card_details(facts, loaded, changed)).write(folder)
    return _made(model, notes)


def _pipeline(step: ConvertStep, loaded: Loaded, folder: Path) -> dict[str, Any]:
    model, facts, changed, notes = resize(step, loaded.model, facts_for(step, loaded))
    assert not isinstance(model, DiTTransformer)
    with naming_encoders(step, facts):
        details, more = write_pipeline(
            folder,
            model,
            facts,
            vae=facts.vae,
            text_encoder=facts.text_encoder,
            y_embedding=loaded.report.y_embedding,
            dtype=DTYPES[step.dtype],
            max_shard_size=step.max_shard_size,
        )
    card_for("pipeline", step, _card_details(facts, loaded, changed) | details).write(folder)
    notes += more + _what_diffusers_does_instead(model.config, facts)
    return _made(model, notes, size=details["size"])


@contextlib.contextmanager
def naming_encoders(step: ConvertStep, facts: ModelFacts) -> Iterator[None]:
    """Say in what is refused which encoders the user has not named."""
    try:
        yield
    except UserError as error:
        silent = [name for name in ("vae", "text_encoder") if getattr(step, name) is None]
        if not silent:
            raise
        named = ", ".join(f"{name}={getattr(facts, name)}" for name in silent)
        raise UserError(f"{error} ({named} is what the source names; give others if need be)") from error


def _what_diffusers_does_instead(config: TransformerConfig, facts: ModelFacts) -> list[str]:
    notes = []
    if facts.uncond == "learned":
        notes.append(
            "the model was trained with a learned unconditional caption: diffusers encodes the empty one "
            "instead; `pixart sample` uses uncond.safetensors"
        )
    if sizes_are_withheld(config):
        notes.append(
            "PixArtAlphaPipeline gives sizes to models of sample_size 128 only, so diffusers cannot run this "
            f"one, with micro-conditions and sample_size {config.sample_size}; `pixart sample` can"
        )
    return notes


def _official(step: ConvertStep, loaded: Loaded, folder: Path) -> dict[str, Any]:
    model, facts, changed, notes = resize(step, loaded.model, loaded.facts)
    if isinstance(model, DiTTransformer):
        model, reason = with_definition(model, step.dit_definition)
        notes += [reason] if reason else []
    path, more = write_official(folder, model, facts, loaded.report.y_embedding, DTYPES[step.dtype])
    card_for(OFFICIAL_CARD, step, _card_details(facts, loaded, changed) | {"file": path.name}).write(folder)
    return _made(model, notes + more, file=path.name)
