"""Write an ordinary `PixArtAlphaPipeline` folder that diffusers loads without us."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixart_core.artifacts.checkpoint import TRANSFORMER, ModelFacts
from pixart_core.artifacts.publish import write_json, write_text
from pixart_core.artifacts.uncond import write_uncond
from pixart_core.conversion.encoder_folders import put_text_encoder, put_vae, text_width
from pixart_core.errors import UserError
from pixart_core.models.config import TransformerConfig
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.files import CONFIG, MAX_SHARD_SIZE, not_finite_notes, save_transformer
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.schedulers import build_scheduler

# Latent sides whose aspect-ratio bins `PixArtAlphaPipeline` knows.
BINNED_SAMPLE_SIZES = (32, 64, 128)


def write_pipeline(
    folder: Path,
    model: PixArtTransformer,
    facts: ModelFacts,
    *,
    vae: str,
    text_encoder: str,
    y_embedding: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> tuple[dict[str, Any], list[str]]:
    """Write every part of the pipeline but the card.

    Args:
        folder: empty.
        vae, text_encoder: hub id or local folder.
        y_embedding: kept beside the pipeline, so that a way back to the official file stays lossless.

    Returns:
        Details for the card: "model" (facts, encoders "." meaning this folder), "size"; notes for the user.

    Raises:
        UserError: encoders that are not to be had or do not fit the model.
    """
    config = model.config
    vae_config = put_vae(vae, folder / "vae")
    check_encoders(config, vae, vae_config, text_encoder, None)
    encoder_class, tokenizer_class, text_config = put_text_encoder(
        text_encoder, folder / "text_encoder", folder / "tokenizer"
    )
    check_encoders(config, vae, None, text_encoder, text_config)
    place = folder / TRANSFORMER
    not_finite = save_transformer(config, model.state_dict(), place, dtype, max_shard_size)
    build_scheduler("dpm-solver", facts.prediction_type).save_pretrained(folder / "scheduler")
    if y_embedding is not None:
        write_uncond(folder, y_embedding)
    pixels = config.sample_size * 2 ** (len(vae_config["block_out_channels"]) - 1)
    write_text(folder / "README.md", _readme(facts, config, pixels))
    write_json(folder / "model_index.json", _model_index(encoder_class, tokenizer_class))
    inside = dataclasses.replace(facts, vae=".", text_encoder=".")
    size = {"sample_size": config.sample_size, "height": pixels, "width": pixels}
    return inside.to_details() | {"size": size}, not_finite_notes(not_finite)


def write_dit_folder(
    folder: Path,
    model: DiTTransformer,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    *,
    force: bool = False,
) -> list[str]:
    """Write a DiT as diffusers' `DiTTransformer2DModel`, in `folder/transformer`.

    Args:
        force: write a DiT of another timestep embedding, too, which is what diffusers' own conversion of
            the released DiT weights does.

    Returns:
        Notes for the user.

    Raises:
        UserError: the class cannot compute what this model computes.
    """
    config = model.config
    notes = check_dit_folder(config, force=force)
    weights = dict(model.state_dict())
    if config.embedders == "shared":
        names = [name for name in weights if name.startswith("emb.")]
        for name in names:
            tensor = weights.pop(name)
            for index in range(config.num_layers):
                weights[f"transformer_blocks.{index}.norm1.{name}"] = tensor
    config = dataclasses.replace(config, embedders="per_block", timestep_freq_shift=1)
    notes += not_finite_notes(save_transformer(config, weights, folder / TRANSFORMER, dtype, max_shard_size))
    # Our entry is not needed here (its values are the class's own), and diffusers would warn about it.
    plain = {name: value for name, value in config.to_diffusers().items() if name != "pixart"}
    write_json(folder / TRANSFORMER / CONFIG, plain)
    return notes


def check_dit_folder(config: TransformerConfig, *, force: bool) -> list[str]:
    """Refuse what `write_dit_folder` cannot hold; returns notes for the user.

    Raises:
        UserError: diffusers' class cannot compute what this model computes.
    """
    notes = []
    if config.timestep_freq_shift != 1:
        if not force:
            raise UserError(
                "diffusers' DiTTransformer2DModel embeds timesteps with frequency shift 1 and this DiT with "
                "0, so it would compute something else there; use to=official (DiT's own layout), to=dit or "
                "to=pixart, or dit_definition=diffusers to write it all the same"
            )
        notes.append(
            "diffusers embeds timesteps with frequency shift 1, these weights were trained with 0: its "
            "outputs differ, as they do for the DiT weights that it publishes"
        )
    if config.interpolation_scale != 1:
        raise UserError("diffusers' DiTTransformer2DModel has no position scale; this DiT's is not 1")
    return notes


def check_encoders(
    config: TransformerConfig,
    vae: str,
    vae_config: dict[str, Any] | None,
    text_encoder: str,
    text_config: dict[str, Any] | None,
) -> None:
    """Refuse encoders that do not fit the model; a config that is not at hand (None) passes.

    Raises:
        UserError: another number of channels, or a VAE that PixArtAlphaPipeline would use wrongly.
    """
    if vae_config is not None:
        _check_vae(vae, vae_config, config)
    width = text_width(text_config) if text_config else None
    if width is not None and width != config.caption_channels:
        raise UserError(
            f"text encoder {text_encoder} has tokens of width {width}, but the model was made for "
            f"{config.caption_channels}"
        )


def _check_vae(vae: str, vae_config: dict[str, Any], config: TransformerConfig) -> None:
    channels = vae_config.get("latent_channels", 4)
    if channels != config.in_channels:
        raise UserError(
            f"VAE {vae} has {channels} latent channels, but the model was made for {config.in_channels}"
        )
    if vae_config.get("shift_factor"):
        raise UserError(
            f"VAE {vae} has shift_factor {vae_config['shift_factor']}, which PixArtAlphaPipeline ignores: "
            "its pictures would come out wrong; sample with `pixart sample`"
        )


def _model_index(encoder_class: str, tokenizer_class: str) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": "PixArtAlphaPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", encoder_class],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def sizes_are_withheld(config: TransformerConfig) -> bool:
    """Whether `PixArtAlphaPipeline` keeps from a model the micro-conditions that it needs, and so fails."""
    return config.use_additional_conditions and config.sample_size != 128


def _readme(facts: ModelFacts, config: TransformerConfig, pixels: int) -> str:
    binned = config.sample_size in BINNED_SAMPLE_SIZES and pixels == 8 * config.sample_size
    arguments = [f"height={pixels}, width={pixels}", "num_inference_steps=20", "guidance_scale=4.5"]
    arguments += ["clean_caption=False"]
    if not binned:
        arguments.append("use_resolution_binning=False")
    if facts.max_tokens != 120:
        arguments.append(f"max_sequence_length={facts.max_tokens}")
    call = ",\n    ".join(arguments)
    binning = (
        "It may also be called with `use_resolution_binning=True`."
        if binned
        else "`use_resolution_binning=False` is needed: diffusers knows size bins only for latents of side "
        "32, 64 or 128 behind an 8x VAE."
    )
    learned = (
        "\nIt was trained with a learned embedding in place of dropped captions (`uncond.safetensors`); "
        "diffusers encodes the empty caption instead, as it does for the released models.\n"
        if facts.uncond == "learned"
        else ""
    )
    if sizes_are_withheld(config):
        binning = (
            "`PixArtAlphaPipeline` gives the picture's size to models of sample_size 128 only, and this one, "
            "of another, was trained with it: the call above fails. `pixart sample` draws with it."
        )
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
---
# A PixArt-alpha text-to-image model

Made for {pixels}x{pixels} pixels (latents of side {config.sample_size}), {config.num_layers} layers \
of width {config.width}, prediction type `{facts.prediction_type}`, captions of up to {facts.max_tokens} \
tokens.

```python
from diffusers import PixArtAlphaPipeline

pipeline = PixArtAlphaPipeline.from_pretrained("PATH_OF_THIS_FOLDER")
image = pipeline(
    "a prompt",
    {call},
).images[0]
```

{binning}
{learned}"""
