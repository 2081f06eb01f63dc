"""What a step would cost, from its options and the cards of its inputs alone (for `--dry-run`)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pixart_core.artifacts.card import read_card
from pixart_core.errors import UserError
from pixart_core.recipe.data import DataOptions, ShapesStep
from pixart_core.recipe.feature_estimate import estimate_features
from pixart_core.recipe.features import ExtractFeaturesStep
from pixart_core.recipe.schema import SampleStep
from pixart_core.recipe.training import ModelOptions, TrainStep

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
T5_XXL_WIDTH = 4096


def estimate(step: BaseModel) -> dict[str, Any]:
    """Counts that are cheap to know: images, updates, parameters, FLOPs; unknown ones are left out."""
    if isinstance(step, ShapesStep):
        return {"images": step.count + step.heldout}
    if isinstance(step, DataOptions):
        images = count_images(str(step.data))
        images = None if images is None else min(images, step.limit or images)
        if isinstance(step, ExtractFeaturesStep):
            return estimate_features(step, images)
        return {} if images is None else {"images": images}
    if isinstance(step, TrainStep):
        return _training(step)
    if isinstance(step, SampleStep):
        return _sampling(step)
    return {}


def count_images(data: str) -> int | None:
    """Images in a manifest or (by suffix, unopened) in a folder; None for tars and hub data."""
    folder = Path(data)
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        with manifest.open("rb") as lines:
            return sum(1 for _ in lines)
    if not folder.is_dir():
        return None
    count = 0
    for _, _, names in os.walk(folder):
        count += sum(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in names)
    return count or None


def parameters(model: ModelOptions, *, latent_channels: int = 4, caption_channels: int = T5_XXL_WIDTH) -> int:
    """Trainable parameters of a text-conditioned PixArt (XL/2: 610,856,096; with sizes 611,349,152).

    With adaln a block's table of 6 vectors becomes an MLP to 6 vectors, and so in the final layer.
    """
    width, patch = model.num_attention_heads * model.attention_head_dim, model.patch_size**2
    channels_out = latent_channels * (2 if model.learned_variance else 1)
    own, shared = (width + 1) * width, 0
    if model.modulation != "adaln":
        own, shared = width, 6 * (width + 1) * width
    block = 16 * width**2 + 13 * width + 6 * own
    timestep = (256 + 1) * width + (width + 1) * width
    caption = (caption_channels + 1) * width + (width + 1) * width
    patches = (latent_channels * patch + 1) * width
    final = 2 * own + patch * channels_out * (width + 1)
    sizes = 0
    if model.use_additional_conditions:
        third = width // 3
        sizes = 2 * ((256 + 1) * third + (third + 1) * third)
    return model.num_layers * block + timestep + shared + caption + patches + final + sizes


def forward_flops(model: ModelOptions, *, tokens: int, text_tokens: int) -> int:
    """Floating-point operations of one image's forward pass through the blocks (a multiply-add is two)."""
    width = model.num_attention_heads * model.attention_head_dim
    matrices = 28 * tokens * width**2 + 4 * text_tokens * width**2
    attention = 4 * tokens * width * (tokens + text_tokens)
    return model.num_layers * (matrices + attention)


def _training(step: TrainStep) -> dict[str, Any]:
    images = step.max_train_steps * step.global_batch_size
    known: dict[str, Any] = {"updates": step.max_train_steps, "images": images}
    card = read_card(Path(str(step.features)))
    details: Mapping[str, Any] = card.get("details", {}) if card else {}
    if details.get("count"):
        known |= {"samples": details["count"], "epochs": round(images / details["count"], 3)}
    model = step.model or _model_of(str(step.init))
    if model is None or model.conditioning != "text":
        return known
    channels = {key: details[key] for key in ("latent_channels", "caption_channels") if key in details}
    count = parameters(model, **channels)
    side = (step.positions.sample_size if step.positions else model.sample_size) // model.patch_size
    forward = forward_flops(model, tokens=side**2, text_tokens=details.get("max_tokens", 120))
    # Backward costs twice the forward; weights, gradients, two moments and the average in fp32.
    return known | {
        "parameters": count,
        "training_flops": 3 * forward * images,
        "state_gigabytes": round(count * 4 * 5 / 1e9, 3),
    }


def _model_of(init: str) -> ModelOptions | None:
    """The options of a checkpoint's transformer, read from its config.json."""
    for folder in (Path(init) / "transformer", Path(init)):
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if not isinstance(config, dict):
            continue
        known = {key: config[key] for key in ModelOptions.model_fields if config.get(key) is not None}
        try:
            return ModelOptions.model_validate(known | {"conditioning": _conditioning(config)})
        except ValidationError:  # whoever trains with it says what is wrong
            continue
    return None


def _conditioning(config: Mapping[str, Any]) -> str:
    """What a transformer is conditioned on, by its diffusers class; older folders tell a DiT by its norm."""
    if config.get("conditioning"):  # combinations that diffusers has no class for say it themselves
        return str(config["conditioning"])
    name, norm = config.get("_class_name"), config.get("norm_type")
    older_dit = name == "Transformer2DModel" and norm == "ada_norm_zero"
    return "class" if name == "DiTTransformer2DModel" or older_dit else "text"


def _sampling(step: SampleStep) -> dict[str, Any]:
    prompts = len(step.prompts)
    if step.prompts_file is not None:
        prompts += _count_prompts(Path(str(step.prompts_file)))
    prompts = min(prompts, step.limit or prompts)
    images = prompts * step.images_per_prompt
    return {"prompts": prompts, "images": images, "solver_steps": images * step.num_inference_steps}


def _count_prompts(path: Path) -> int:
    """Lines of a text file, or held-out images of a manifest folder; 0 if it is not there yet.

    Raises:
        UserError: it cannot be read.
    """
    manifest = path / "manifest.jsonl"
    try:
        if path.is_file():
            return sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        if not manifest.is_file():
            return 0
        with manifest.open(encoding="utf-8") as lines:
            return sum(json.loads(line).get("split") == "heldout" for line in lines)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from error
