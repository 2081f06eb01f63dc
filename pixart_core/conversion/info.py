"""`pixart convert --info`: what a file or folder is, from its names and headers; weights stay on the disk."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pixart_core.conversion.detect import Understood, dtypes, understand, untold
from pixart_core.conversion.info_folders import (
    card_progress,
    missing_parts,
    unfinished_training,
    vae_factor,
)
from pixart_core.conversion.official import POS_EMBED, Y_EMBEDDING
from pixart_core.conversion.opened import Opened, open_source
from pixart_core.conversion.recognise import (
    CONTROLNET_COPIES,
    NO_BASE,
    base_model,
    copied_blocks,
    other_model,
    recognise,
)
from pixart_core.errors import UserError
from pixart_core.models.files import empty_model

# Parts of a model and what its names (ours) begin with or contain; the first that fits counts.
PARTS = (
    ("patch_embedding", ("pos_embed.",)),
    ("timestep", ("timestep_embedder.",)),
    ("size_and_ratio", ("resolution_embedder.", "aspect_ratio_embedder.")),
    ("classes", ("class_embedder.",)),
    ("shared_modulation", ("adaln_single.linear.",)),
    ("caption", ("caption_projection.",)),
    ("self_attention", (".attn1.",)),
    ("cross_attention", (".attn2.",)),
    ("feed_forward", (".ff.",)),
    ("block_modulation", ("transformer_blocks.",)),
    ("final_layer", ("scale_shift_table", "proj_out")),
)
MICRO_CONDITION_PIXELS = 1024


def describe(source: str | Path) -> dict[str, Any]:
    """What `source` holds, as a JSON-able dict.

    Returns:
        Always "source", "format" and "problems" (what keeps it from being converted). "unknown" names the
        options that a conversion would need, "missing" parts that the layout has room for.

    Raises:
        UserError: `source` cannot be opened at all.
    """
    unfinished = unfinished_training(Path(source))
    if unfinished is not None:
        return {"source": str(source)} | _unfinished(*unfinished)
    opened = open_source(source)
    info = {"source": str(source)} | _container(opened)
    if opened.format == "official PixArt ControlNet":
        return info | _controlnet(opened)
    if opened.format == "LoRA adapter":
        return info | _lora(opened)
    if opened.format == "another model":
        what = other_model(opened.weights) or "no PixArt or DiT"
        names = ", ".join(list(opened.weights)[:3])
        total = {"parameters_total": _count(opened.weights)}
        return info | total | {"problems": [f"these are weights of {what} ({names}, ...)"]}
    return info | _model(opened)


def _unfinished(progress: dict[str, Any], weights: Path | None) -> dict[str, Any]:
    info: dict[str, Any] = {"problems": []}
    if weights is not None:
        opened = open_source(weights)
        info = _container(opened) | _model(opened)
    steps = f"{progress['steps']} of {progress.get('max_train_steps', '?')} steps"
    told = f"the training has not finished ({steps}); run it again to continue it"
    return info | {
        "format": "pixart",
        "container": "unfinished training",
        "weights_used": "ema",
        "trained": progress,
        "problems": [told, *info["problems"]],
    }


def _container(opened: Opened) -> dict[str, Any]:
    return {
        # Ours has diffusers' names, and may be of a kind that diffusers has no class for.
        "format": "pixart" if opened.container == "checkpoint" else opened.format,
        "container": opened.container,
        "files": len(opened.files),
        "bytes": sum(file.stat().st_size for file in opened.files),
        "dtype": dtypes(opened.weights),
        "ema": opened.has_ema,
        "weights_used": opened.used,
        "trained": dict(opened.extra) | card_progress(opened.path),
        "missing": missing_parts(opened),
        "problems": [],
        "notes": [],
    }


def _controlnet(opened: Opened) -> dict[str, Any]:
    base = base_model(opened.weights)
    inner = dataclasses.replace(opened, weights=base, format=recognise(base))
    count = copied_blocks(opened.weights)
    told: dict[str, Any] = _model(inner) if base else {"problems": [f"{count} copied blocks {NO_BASE}"]}
    expected = ["0.before_proj", *(f"{index}.after_proj" for index in range(count))]
    names = [f"{CONTROLNET_COPIES}{module}.{p}" for module in expected for p in ("weight", "bias")]
    absent = [name for name in names if name not in opened.weights] + ([] if base else ["base_model"])
    parameters = {"base": told.get("parameters_total", 0), "copies": _count(opened.weights) - _count(base)}
    return told | {
        "model": "PixArt ControlNet",
        "copied_blocks": count,
        "missing": missing_parts(inner) + absent,
        "parameters": parameters,
        "parameters_total": sum(parameters.values()),
    }


def _lora(opened: Opened) -> dict[str, Any]:
    down = [t for name, t in opened.weights.items() if "lora_A" in name or "down" in name.split("lora")[-1]]
    return {
        "model": "LoRA adapter",
        "layers_changed": len(down),
        "ranks": sorted({min(tensor.shape) for tensor in down if tensor.ndim}),
        "parameters_total": _count(opened.weights),
        "problems": ["a LoRA adapter changes a model and holds none: it cannot be converted alone"],
    }


def _model(opened: Opened) -> dict[str, Any]:
    hints, unknown = untold(opened)
    try:
        found = understand(opened, hints)
        empty_model(found.config, found.weights, opened.path)
    except UserError as error:
        return {"problems": [str(error)], "parameters_total": _count(opened.weights)}
    parameters = count_parts(found.weights)
    return {
        "unknown": unknown,
        "notes": found.notes,
        "parameters": parameters,
        "parameters_total": sum(parameters.values()),
        "uncond_embedding": None if found.y_embedding is None else list(found.y_embedding.shape),
    } | _config(opened, found, unknown)


def _config(opened: Opened, found: Understood, unknown: list[str]) -> dict[str, Any]:
    config, facts = found.config, opened.facts
    text, sized = config.conditioning == "text", "sample_size" not in unknown
    factor, factor_known = vae_factor(opened)
    resolution = factor * config.sample_size if sized else None
    if resolution is None and config.use_additional_conditions:
        resolution = MICRO_CONDITION_PIXELS
    return {
        "model": "PixArt" if text else "DiT",
        "stage": "text-to-image" if text else "class-conditional (stage 1)",
        "conditioning": "caption" if text else f"{config.num_embeds_ada_norm} classes",
        "modulation": config.modulation,
        "resolution": resolution,
        "resolution_told_by": _told_by(opened, sized, config.use_additional_conditions),
        "vae_factor": factor,
        "vae_factor_assumed": not factor_known,
        "sample_size": config.sample_size if sized else None,
        "interpolation_scale": config.interpolation_scale if sized else None,
        "micro_conditions": config.use_additional_conditions,
        "trained_sizes": [list(size) for size in facts.trained_sizes],
        "trained_positions": facts.trained_positions and list(facts.trained_positions),
        "layers": config.num_layers,
        "width": config.width,
        "heads": None if "num_attention_heads" in unknown else config.num_attention_heads,
        "patch_size": config.patch_size,
        "latent_channels": config.in_channels,
        "learned_variance": config.learned_variance,
        "caption_channels": config.caption_channels if text else None,
        "max_tokens": facts.max_tokens if text else None,
        "timestep_freq_shift": config.timestep_freq_shift,
        "embedders": config.embedders,
        "prediction_type": facts.prediction_type,
        "uncond": facts.uncond if text else "null class",
        "encoders_stored": opened.facts_stored,
        "vae": facts.vae,
        "text_encoder": facts.text_encoder if text else None,
    }


def _told_by(opened: Opened, sized: bool, micro_conditions: bool) -> str | None:
    if sized:
        return "config" if opened.config is not None else "position table"
    return "micro-conditions" if micro_conditions else None


def count_parts(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Parameters of each of `PARTS`; `weights` in our names."""
    counts: Counter[str] = Counter()
    for name, tensor in weights.items():
        part = next((part for part, marks in PARTS if any(mark in name for mark in marks)), "other")
        counts[part] += tensor.numel()
    order = [part for part, _ in PARTS] + ["other"]
    return {part: counts[part] for part in order if counts[part]}


def _count(weights: Mapping[str, Tensor]) -> int:
    buffers = (POS_EMBED, Y_EMBEDDING)
    return sum(t.numel() for name, t in weights.items() if not name.endswith(buffers))
