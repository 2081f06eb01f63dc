"""What is known of the encoders that made imported features."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pixart_core.encoders.array_files import UnusableFeatureError
from pixart_core.encoders.device import choose_device
from pixart_core.encoders.feature_exchange import FeatureSource
from pixart_core.encoders.feature_parts import loadable
from pixart_core.encoders.text import load_text_encoder
from pixart_core.encoders.vae import load_described_vae
from pixart_core.errors import UserError
from pixart_core.recipe.features import ImportFeaturesStep

# What the paper's own features were made with (stabilityai/sd-vae-ft-ema), for machines that lack it.
_RELEASED_VAE = {
    "name": "stabilityai/sd-vae-ft-ema",
    "revision": None,
    "hash": None,
    "latent_channels": 4,
    "downsampling": 8,
    "scaling_factor": 0.18215,
    "shift_factor": 0.0,
    "source": "stabilityai/sd-vae-ft-ema",
}
_RELEASED_TEXT = {
    "name": "google/t5-v1_1-xxl",
    "revision": None,
    "hash": None,
    "source": "google/t5-v1_1-xxl",
}


@dataclasses.dataclass(frozen=True)
class ImportedEncoders:
    """What cards say of the encoders, and the tokens of "" where they are known."""

    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    empty_caption: np.ndarray | None


def imported_encoders(step: ImportFeaturesStep, source: FeatureSource) -> ImportedEncoders:
    """From the export's card, else from the encoders that `step` names.

    Raises:
        UserError: an encoder cannot be loaded, or cannot have made these features.
    """
    if source.known:
        if step.text_encoder is not None:
            raise UserError("text_encoder: the export says itself what it was made with; leave it out")
        empty = source.empty_caption() if source.known.get("empty_caption", True) else None
        return ImportedEncoders(source.known["vae"], source.known["text_encoder"], empty)
    channels, width = _widths(source)
    vae = _vae(step)
    if vae["latent_channels"] != channels:
        raise UserError(
            f"{source.place(0)} has {channels} latent channels, VAE {vae['name']} makes "
            f"{vae['latent_channels']}; give vae="
        )
    text, empty = _text(step, width)
    return ImportedEncoders(vae, text | {"channels": width}, empty)


def _widths(source: FeatureSource) -> tuple[int, int]:
    """Latent channels and width of the text, of the first sample that can be read."""
    problem = "no samples"
    for index in range(len(source)):
        try:
            sample = source.check(index)
            return sample.latents[0], sample.text[1]
        except UnusableFeatureError as error:
            problem = f"{source.place(index)}: {error}" if index == 0 else problem
    raise UserError(f"none of {len(source)} samples can be used, e.g. {problem}")


def _vae(step: ImportFeaturesStep) -> Mapping[str, Any]:
    name = str(step.vae)
    try:
        return load_described_vae(name)[1] | {"source": loadable(name)}
    except UserError:
        if name == _RELEASED_VAE["name"]:
            return _RELEASED_VAE
        raise


def _text(step: ImportFeaturesStep, width: int) -> tuple[dict[str, Any], np.ndarray | None]:
    if step.text_encoder is None:
        return dict(_RELEASED_TEXT), None
    name = str(step.text_encoder)
    encoder = load_text_encoder(name, choose_device(step.device))
    if encoder.channels != width:
        raise UserError(f"{name} makes text of width {encoder.channels}, the features have {width}")
    empty = encoder.encode_each([""])[0].float().numpy()
    return encoder.describe() | {"source": loadable(name)}, empty
