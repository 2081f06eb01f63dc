"""What a train step will find, made or not: its model and its features, and what had to be assumed."""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pixart_core.artifacts.card import read_card
from pixart_core.recipe.base import FromStep
from pixart_core.recipe.buckets import Size, bucket_table
from pixart_core.recipe.encoders import AnalyticVae, EncodersStep, TrainedVae
from pixart_core.recipe.features import ExtractFeaturesStep
from pixart_core.recipe.image_counts import count_images
from pixart_core.recipe.model_counts import T5_XXL_WIDTH, Interface
from pixart_core.recipe.planning import StepPlan
from pixart_core.recipe.schema import ConvertStep, Recipe
from pixart_core.recipe.training import ModelOptions, Positions, TrainStep

SD_DOWNSAMPLING = 8
RELEASED = {
    256: Positions(sample_size=32, use_additional_conditions=False),
    512: Positions(sample_size=64, use_additional_conditions=False),
    1024: Positions(sample_size=128, interpolation_scale=2.0, use_additional_conditions=True),
}


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a train step will find.

    Attributes:
        images: in its features; None if nobody knows.
        latents: (height, width) of each bucket's latents, and its share of the images.
        made: whether the features are there.
        assumed: what could not be read, one sentence each.
    """

    model: ModelOptions
    images: int | None
    latents: Mapping[Size, float]
    interface: Interface
    made: bool
    assumed: tuple[str, ...]


def expect(
    step: TrainStep,
    plan: StepPlan | None = None,
    recipe: Recipe | None = None,
    root: Path = Path(),
    remade: Collection[str] = (),
) -> Expected:
    """Read what is there, and follow `{step: NAME}` through `recipe` (whose outputs are below `root`).

    Args:
        remade: steps whose outputs will be made again, so that what lies there does not count.
    """
    there = _Outputs(root, frozenset(remade))
    assumed: list[str] = []
    model = _model(step, recipe, there)
    if model is None:
        model = _moved(ModelOptions.model_validate({}), step.positions)
        assumed.append(f"{there.path(step.init)} cannot be read yet: XL/2")
    features = there.path(step.features)
    card = read_card(features) if there.may_be_read(step.features) else None
    if card is not None and card["details"].get("count"):
        return _of_card(card["details"], step, model, assumed)
    made_by = _source_step(step.features, recipe)
    extract = made_by if isinstance(made_by, ExtractFeaturesStep) else None
    images, buckets = (plan.images, plan.aspect_buckets) if plan else (None, None)
    interface, factor = Interface(), SD_DOWNSAMPLING
    resolution = step.resolution or model.sample_size * factor
    if extract is not None:
        interface, factor = _of_encoders(extract, recipe)
        resolution = step.resolution or extract.all_resolutions[0]
        images = _counted(extract, there) or images
        buckets = extract.aspect_buckets  # known, whatever the plan supposes
    else:
        assumed.append(
            f"{features} is not there yet: captions of {interface.text_tokens} tokens x "
            f"{interface.caption_channels}, latents of {interface.latent_channels} channels at 1/{factor}"
        )
    sizes = bucket_table(buckets or "square", resolution)
    latents = {(height // factor, width // factor): 1 / len(sizes) for height, width in sizes}
    if len(sizes) > 1:
        assumed.append(f"as many images in each of {len(sizes)} aspect buckets")
    return Expected(model, images, latents, interface, False, tuple(assumed))


def _of_card(
    details: Mapping[str, Any], step: TrainStep, model: ModelOptions, assumed: list[str]
) -> Expected:
    vae = details.get("vae") or {}
    factor = int(vae.get("downsampling") or SD_DOWNSAMPLING)
    interface = Interface(
        latent_channels=details.get("latent_channels") or 4,
        caption_channels=details.get("caption_channels") or T5_XXL_WIDTH,
        text_tokens=details.get("max_tokens") or Interface.text_tokens,
        classes=len(details.get("label_names") or ()) or Interface.classes,
    )
    resolutions = details.get("resolutions") or []
    wanted = step.resolution or (resolutions[0] if len(resolutions) == 1 else None)
    counts: dict[Size, int] = {}
    for name, count in (details.get("buckets") or {}).items():
        height, width = (int(side) for side in name.split("x"))
        # A card counts the buckets of all resolutions; each belongs to the one nearest to it.
        nearest = min(resolutions, key=lambda r: abs(math.log(r * r / (height * width))), default=None)
        if wanted is None or nearest in (None, wanted):
            counts[height // factor, width // factor] = count
    counts = counts or {(model.sample_size, model.sample_size): 1}
    total = sum(counts.values())
    latents = {size: count / total for size, count in counts.items()}
    return Expected(model, int(details["count"]), latents, interface, True, tuple(assumed))


def _of_encoders(extract: ExtractFeaturesStep, recipe: Recipe | None) -> tuple[Interface, int]:
    """(interface, downsampling of the VAE) of features that are not made yet."""
    vae, text = _source_step(extract.vae, recipe), _source_step(extract.text_encoder, recipe)
    channels, factor, width = 4, SD_DOWNSAMPLING, T5_XXL_WIDTH
    if isinstance(vae, EncodersStep) and isinstance(vae.vae, AnalyticVae):
        channels, factor = 3, 2**vae.vae.downsamplings
    elif isinstance(vae, EncodersStep) and isinstance(vae.vae, TrainedVae):
        channels, factor = vae.vae.latent_channels, 2 ** (len(vae.vae.block_out_channels) - 1)
    if isinstance(text, EncodersStep) and text.text_encoder is not None:
        width = text.text_encoder.width
    return Interface(channels, width, extract.max_tokens), factor


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """Where the outputs of steps are, and which of them will be made again."""

    root: Path
    remade: frozenset[str]

    def path(self, source: str | FromStep | None) -> Path:
        return self.root / source.step if isinstance(source, FromStep) else Path(str(source))

    def may_be_read(self, source: str | FromStep | None) -> bool:
        return not (isinstance(source, FromStep) and source.step in self.remade)


def _counted(extract: ExtractFeaturesStep, there: _Outputs) -> int | None:
    """Images that the features will be of, where their data are here."""
    if not there.may_be_read(extract.data):
        return None
    return count_images(str(there.path(extract.data)), extract.limit)[0]


def _model(step: TrainStep, recipe: Recipe | None, there: _Outputs) -> ModelOptions | None:
    found = step.model or _model_of(step.init, recipe, there)
    return None if found is None else _moved(found, step.positions)


def _model_of(source: str | FromStep | None, recipe: Recipe | None, there: _Outputs) -> ModelOptions | None:
    """The model behind a source: of its config.json, or of the step that will make it."""
    made = _model_in(there.path(source)) if there.may_be_read(source) else None
    step = _source_step(source, recipe)
    if made is not None or step is None:
        return made
    if isinstance(step, TrainStep):
        return _model(step, recipe, there)
    if not isinstance(step, ConvertStep) or (model := _model_of(step.source, recipe, there)) is None:
        return None
    if step.to == "pixart" and model.conditioning == "class":
        model = model.model_copy(update={"conditioning": "text", "modulation": step.modulation})
    return _moved(model, step.positions or RELEASED.get(step.resolution or 0))


def _moved(model: ModelOptions, positions: Positions | None) -> ModelOptions:
    """`model` at another resolution."""
    if positions is None:
        return model
    changes = {key: value for key, value in positions.model_dump().items() if value is not None}
    return model.model_copy(update=changes)


def _source_step(source: str | FromStep | None, recipe: Recipe | None) -> Any:
    return recipe.steps.get(source.step) if recipe and isinstance(source, FromStep) else None


def _model_in(init: Path) -> ModelOptions | None:
    """The options of a checkpoint's transformer, read from its config.json."""
    for folder in (init / "transformer", init):
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if not isinstance(config, dict):
            continue
        known = {key: config[key] for key in ModelOptions.model_fields if config.get(key) is not None}
        channels = config.get("in_channels"), config.get("out_channels")
        known["learned_variance"] = None in channels or channels[0] != channels[1]
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
