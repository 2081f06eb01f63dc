"""What a text-to-image model is, without its weights: enough to check what is asked of it."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pixart_core.artifacts.checkpoint import TRANSFORMER, ModelFacts, read_facts
from pixart_core.artifacts.json_file import read_json
from pixart_core.artifacts.uncond import UNCOND, missing_uncond, read_uncond
from pixart_core.encoders.hub import HubModel, find_on_hub, is_hub_id
from pixart_core.encoders.vae import read_vae_downsampling
from pixart_core.errors import UserError
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import CONFIG, WEIGHTS, load_config, transformer_folder
from pixart_core.sampling.schedulers import LEARNED_VARIANCE
from pixart_core.sampling.sizes import (
    Size,
    default_size,
    how_far,
    how_to_train,
    name_sizes,
    positions_changed,
    trained_sizes,
)

PIPELINE = "model_index.json"
# Of a repository on the hub: all but weights.
_CONFIGS = ("*.json", UNCOND, "tokenizer/*")
_WEIGHTS = r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"


@dataclasses.dataclass(frozen=True)
class ModelOutline:
    """A model as its configs and its card tell.

    Attributes:
        source: where it lies: a folder, or an id on the hub.
        pixels_per_latent: picture pixels per latent pixel, along a side.
        learned_uncond: tokens of the learned unconditional caption; None: the empty caption is encoded.
        hub: the commit that an id means.
    """

    source: str
    config: TransformerConfig
    facts: ModelFacts
    pixels_per_latent: int
    learned_uncond: Float[Tensor, "l d"] | None = None
    hub: HubModel | None = None

    @property
    def trained_sizes(self) -> tuple[Size, ...]:
        """(height, width) in pixels that the model was trained on."""
        return trained_sizes(self.facts, self.config, self.pixels_per_latent)

    @property
    def default_size(self) -> Size:
        """(height, width) in pixels of a picture for which none is asked."""
        return default_size(self.config, self.pixels_per_latent, self.trained_sizes)

    def check_size(self, height: int, width: int) -> None:
        """Raises:
        UserError: the size does not divide into patches."""
        step = self.pixels_per_latent * self.config.patch_size
        if height % step or width % step:
            raise UserError(f"{height}x{width}: height and width must be multiples of {step} for this model")

    def check_sampler(self, scheduler: str) -> None:
        """Raises:
        UserError: the sampler needs a learned variance that the model does not have."""
        if scheduler in LEARNED_VARIANCE and self.config.out_channels != 2 * self.config.in_channels:
            raise UserError(
                f"{self.source} has no learned variance (out_channels {self.config.out_channels}), which "
                f"scheduler {scheduler} needs; use dpm-solver, sa-solver or ddim"
            )

    def why_untrained(self, height: int, width: int) -> str | None:
        """Why the model was not trained for that size, with what can be done; None if it was, or nearly."""
        trained = name_sizes(self.trained_sizes)
        if positions_changed(self.facts, self.config):
            assert self.facts.trained_positions is not None
            sample_size, scale = self.facts.trained_positions
            return (
                f"{self.source} was trained at {trained} with positions for sample_size {sample_size}, scale "
                f"{scale:g}, and has since been given those for {self.config.sample_size}, "
                f"{self.config.interpolation_scale:g}, which need training first"
            )
        far = how_far((height, width), self.trained_sizes)
        if far is None:
            return None
        training = how_to_train((height, width), far, self.source, self.config, self.pixels_per_latent)
        return (
            f"{self.source} was trained at {trained}; {height}x{width} {far.words}: ask for one near, or "
            f"{training}"
        )


def read_outline(source: str) -> ModelOutline:
    """Read the configs and the card of a pipeline folder, of a checkpoint, or of either on the hub.

    Raises:
        UserError: not there, class-conditional, encoders that are not there, or no file of the learned
            unconditional caption that the model was trained with, or another model's.
    """
    hub = find_on_hub(source, "checkpoint") if is_hub_id(source) else None
    folder = Path(source) if hub is None else hub.download(_CONFIGS)
    if not folder.is_dir():
        raise UserError(
            f"{source} is not a folder (a pipeline, or the output of pixart train or convert), nor a hub id "
            "such as PixArt-alpha/PixArt-XL-2-512x512"
        )
    facts = read_facts(folder)
    if (folder / PIPELINE).is_file():
        facts = _pipeline_facts(folder, facts, source)
    if hub is not None:
        facts = _encoders_on_hub(facts, folder, hub)
    config = load_config(transformer_folder(folder))
    if config.conditioning != "text":
        raise UserError(
            f"{source} is a class-conditional DiT; `pixart convert --to pixart` makes a text-to-image "
            "model of it"
        )
    learned = _learned_uncond(folder, config) if facts.uncond == "learned" else None
    return ModelOutline(source, config, facts, read_vae_downsampling(facts.vae), learned, hub)


def fetch_weights(outline: ModelOutline) -> Path:
    """The folder with the transformer's weights, fetched from the hub if they lie there.

    Raises:
        UserError: the hub has none as safetensors in full precision, or they cannot be had.
    """
    if outline.hub is None:
        return transformer_folder(Path(outline.source))
    inside = f"{TRANSFORMER}/" if f"{TRANSFORMER}/{CONFIG}" in outline.hub.files else ""
    wanted = [name for name in outline.hub.files if re.fullmatch(re.escape(inside) + _WEIGHTS, name)]
    if not wanted:
        where = "the cache" if outline.hub.cached else "the hub"
        raise UserError(
            f"{outline.hub.repository} has no {inside}{WEIGHTS} in {where}; `pixart convert --from "
            f"{outline.hub.repository} --to diffusers` reads fp16 and .bin, too"
        )
    return outline.hub.download(wanted) / inside


def _encoders_on_hub(facts: ModelFacts, folder: Path, hub: HubModel) -> ModelFacts:
    """Encoders said to lie in the repository are named by its commit, wherever the cache is.

    Those that are not there after all are the released ones.
    """
    changes: dict[str, Any] = {}
    for part in ("vae", "text_encoder"):
        if getattr(facts, part) in (str(folder), "."):
            inside = f"{part}/{CONFIG}" in hub.files
            changes[part] = str(hub) if inside else getattr(ModelFacts(), part)
    return dataclasses.replace(facts, **changes)


def _pipeline_facts(folder: Path, facts: ModelFacts, source: str) -> ModelFacts:
    """A pipeline brings its own encoders, and its scheduler knows what the model predicts."""
    if not (folder / TRANSFORMER).is_dir():
        name = read_json(folder / PIPELINE, "expected a PixArtAlphaPipeline").get("_class_name")
        raise UserError(f"{source} is a {name} without a {TRANSFORMER}/; expected a PixArtAlphaPipeline")
    try:
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot read scheduler/scheduler_config.json: {error}") from error
    kind = scheduler.get("prediction_type", "epsilon")
    return dataclasses.replace(facts, prediction_type=kind, vae=str(folder), text_encoder=str(folder))


def _learned_uncond(folder: Path, config: TransformerConfig) -> Float[Tensor, "l d"]:
    learned = read_uncond(folder)
    if learned is None:
        raise missing_uncond(folder)
    if learned.shape[1] != config.caption_channels:
        raise UserError(
            f"{folder}: {UNCOND} has tokens of width {learned.shape[1]}, the model takes "
            f"{config.caption_channels}: it is another model's; copy the file from where the checkpoint came "
            "from"
        )
    return learned
