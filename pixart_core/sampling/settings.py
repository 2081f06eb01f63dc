"""What the images of a sample set have in common: its record, and whether weights are those recorded."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import diffusers
import torch
import transformers

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.provenance import HASHES, Settings
from pixart_core.encoders.pretrained import tensors_hash, weight_hash
from pixart_core.errors import UserError
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling.model import SamplingModel

EMPTY_CAPTION = "empty"  # instead of the hash of a learned unconditional caption
_NAMES = {
    "transformer": "transformer",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "uncond": "unconditional caption",
}


def settings_of(model: SamplingModel, step: SampleStep, card: Card, output: Path) -> Settings:
    """What the images of a set have in common.

    Raises:
        UserError: the model has other weights than `step.weights` asks for.
    """
    hashes, hub = hashes_of(model), card.details.get("checkpoint_hub")
    whose = "`weights` asks for (with --from: the image's)"
    refuse_other_weights(model.source, step.weights.items(), hashes, whose)
    return Settings(
        scheduler=step.scheduler,
        guidance_interval=step.guidance_interval,
        dtype=step.dtype,
        text_encoder_quantization=step.text_encoder_quantization,
        vae_tiling=step.vae_tiling,
        checkpoint=card.inputs["checkpoint"],
        checkpoint_hub=hub,
        checkpoint_path=None if hub else _relative(str(step.checkpoint), output),
        pixart_version=card.pixart_version,
        **{HASHES[part]: found for part, found in hashes.items()},
        **here(model.device),
    )


def _relative(checkpoint: str, output: Path) -> str:
    """Relative, so that sets that were made alike in two places are the same, byte for byte."""
    return os.path.relpath(os.path.abspath(checkpoint), os.path.abspath(output))


def hashes_of(model: SamplingModel) -> dict[str, str]:
    """Hash of each part of a model that has its prompts' tokens; see `Settings`."""
    assert model.tokens is not None
    learned = model.learned_uncond
    return {
        "transformer": weight_hash(model.transformer),
        "vae": weight_hash(model.vae),
        "text_encoder": model.tokens.encoder_hash,
        "uncond": EMPTY_CAPTION if learned is None else tensors_hash({"y_embedding": learned}),
    }


def refuse_other_weights(
    source: str, recorded: Iterable[tuple[str, str]], actual: Mapping[str, str], whose: str
) -> None:
    """Compare the hashes that are recorded; what is not counts for nothing.

    Args:
        recorded: (part, hash).
        whose: what the recorded ones belong to, in words that follow "than".

    Raises:
        UserError: names the part that has other weights.
    """
    for part, expected in recorded:
        if actual[part] != expected:
            raise UserError(
                f"{source}: its {_NAMES[part]} has other weights ({actual[part]}) than {whose} ({expected}); "
                "give the --checkpoint that has them"
            )


def here(device: torch.device) -> dict[str, str]:
    """Device and libraries."""
    return {
        "device": device.type,
        "torch_version": str(torch.__version__),
        "diffusers_version": diffusers.__version__,
        "transformers_version": transformers.__version__,
    }
