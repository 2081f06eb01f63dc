"""How large a feature store would be, from the options and the encoders' config.json alone."""

import json
from pathlib import Path
from typing import Any

from pixart_core.recipe.features import ExtractFeaturesStep

_SD_VAE: dict[str, Any] = {"latent_channels": 4, "block_out_channels": [128, 256, 512, 512]}
_T5_XXL_WIDTH = 4096
_GROUP = 64  # int8 values that share a scale of two bytes
_ROW_BYTES = {"image": 72, "text": 32}  # ids, hashes, offsets and the plan's columns


def estimate_features(step: ExtractFeaturesStep, images: int | None) -> dict[str, Any]:
    """Bytes on disk for each storage.

    "At most": every caption is as long as the encoder reads and no two are equal, and the VAE has a standard
    deviation (a deterministic one takes half).

    Args:
        images: how many there are; None if that is not known without opening archives.
    """
    image = {name: _image_bytes(step, name) for name in ("int8", "fp16", "fp32")}
    text = {name: _values(name, step.max_tokens, _text_width(step)) for name in image}
    each = {
        name: (image[name] + _ROW_BYTES["image"] if step.only != "text" else 0)
        + (text[name] + _ROW_BYTES["text"] if step.only != "image" else 0)
        for name in image
    }
    told: dict[str, Any] = {"resolutions": list(step.all_resolutions), "storage": step.storage}
    if step.only is not None:
        told["only"] = step.only
    told["bytes_per_image_at_most"] = each
    if images is None:
        return told
    return {"images": images} | told | {"bytes_at_most": {name: size * images for name, size in each.items()}}


def _image_bytes(step: ExtractFeaturesStep, storage: str) -> int:
    config = _config(str(step.vae), "vae") or _SD_VAE
    channels = int(config.get("latent_channels", 4))
    factor = 2 ** (len(config.get("block_out_channels", [0] * 4)) - 1)
    sides = 2 if step.horizontal_flip else 1
    total = 0
    for resolution in step.all_resolutions:
        # The buckets of a resolution have about one area.
        total += 2 * sides * _values(storage, 1, channels * (resolution // factor) ** 2)
    return total


def _values(storage: str, rows: int, width: int) -> int:
    if storage == "int8":
        return rows * (width + 2 * -(-width // _GROUP))
    return rows * width * (2 if storage == "fp16" else 4)


def _text_width(step: ExtractFeaturesStep) -> int:
    config = _config(str(step.text_encoder), "text_encoder")
    width = config.get("d_model") or config.get("hidden_size")
    return int(width) if isinstance(width, int) else _T5_XXL_WIDTH


def _config(source: str, part: str) -> dict[str, Any]:
    for folder in (Path(source) / part, Path(source)):
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config
    return {}
