"""The two parts of a feature store, made together or one by one: images by a VAE, text by an encoder.

`vae.json` and `text_encoder.json` beside the shards say what makes each part. They are written before its
first shard and compared by every later run: weights of two encoders never mix in one store.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models import AutoencoderKL

from pixart_core.artifacts.feature_index import read_index
from pixart_core.artifacts.patterns import expand_pattern
from pixart_core.artifacts.publish import write_json
from pixart_core.encoders.text import TextEncoder, load_text_encoder
from pixart_core.encoders.vae import load_described_vae
from pixart_core.errors import UserError
from pixart_core.recipe.features import ExtractFeaturesStep

Part = Literal["image", "text"]
FILES: Mapping[Part, str] = {"image": "vae.json", "text": "text_encoder.json"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Encoders:
    """The encoders of the parts that this run makes; None for a part that it leaves alone.

    Attributes:
        described: what cards say of them, `source` (where to load them from again) among it.
    """

    vae: AutoencoderKL | None
    text: TextEncoder | None
    described: Mapping[Part, Mapping[str, Any]]


def load_encoders(step: ExtractFeaturesStep, device: torch.device) -> Encoders:
    """Load what `step` needs.

    Raises:
        UserError: an encoder cannot be used.
    """
    vae = text = None
    described: dict[Part, Mapping[str, Any]] = {}
    if step.only != "text":
        source = str(step.vae)
        vae, told = load_described_vae(source, device, DTYPES[step.vae_dtype or step.dtype])
        described["image"] = told | {"source": loadable(source)}
    if step.only != "image":
        source = str(step.text_encoder)
        text = load_text_encoder(source, device, DTYPES[step.text_encoder_dtype or step.dtype])
        described["text"] = text.describe() | {"source": loadable(source)}
    return Encoders(vae, text, described)


def refuse_other_encoders(folder: Path, described: Mapping[Part, Mapping[str, Any]]) -> None:
    """Refuse to go on with a part that other weights began.

    Raises:
        UserError: names both.
    """
    begun = {entry["kind"] for entry in read_index(folder).entries.values()}
    for part, now in described.items():
        before = read_described(folder, part)
        if part in begun and before is not None and before["hash"] != now["hash"]:
            what = "VAE" if part == "image" else "text encoder"
            raise UserError(
                f"{folder} was begun with the {what} {before['name']} (weights {before['hash']}), now it is "
                f"{now['name']} (weights {now['hash']}); choose another output or give the {what} of before"
            )


def write_described(folder: Path, described: Mapping[Part, Mapping[str, Any]]) -> None:
    """Note what makes the parts of this run."""
    for part, now in described.items():
        if read_described(folder, part) != now:
            write_json(folder / FILES[part], now)


def read_described(folder: Path, part: Part) -> dict[str, Any] | None:
    """What made `part`, None if nothing has yet (or the file is damaged: the next run writes it again)."""
    try:
        value = json.loads((folder / FILES[part]).read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and {"hash", "name"} <= value.keys() else None


def loadable(source: str) -> str:
    """A source that can be loaded from any folder: a path made absolute, or a hub id as it is."""
    if source.startswith("hf:"):
        place = source.removeprefix("hf:")
        local = Path(place).exists() or place.startswith(("./", "../"))
        return f"hf:{os.path.abspath(place)}" if local else source
    return os.path.abspath(source) if Path(source).exists() or expand_pattern(source) else source
