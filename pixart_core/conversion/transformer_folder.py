"""Files of a transformer folder of diffusers: its config, and which of several weights count."""

import json
from pathlib import Path
from typing import Any

from pixart_core.errors import UserError
from pixart_core.models.config import OWN_CLASS
from pixart_core.models.files import CONFIG, WEIGHTS, WEIGHTS_INDEX

PICKLED = WEIGHTS.replace(".safetensors", ".bin")
HALF = WEIGHTS.replace(".safetensors", ".fp16.safetensors")
# Full precision before half, safetensors before pickles; shards before a single file, as in diffusers.
INDEXES = (WEIGHTS_INDEX, f"{PICKLED}.index.json", f"{WEIGHTS}.index.fp16.json")
SINGLE_FILES = (WEIGHTS, HALF, PICKLED)
TRANSFORMER_CLASSES = (
    "PixArtTransformer2DModel",
    "DiTTransformer2DModel",
    "Transformer2DModel",  # either of them before diffusers split it up
    OWN_CLASS,
)


def read_transformer_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a transformer folder.

    Raises:
        UserError: none there, damaged, or of another model.
    """
    config = read_json(folder / CONFIG, "expected a transformer folder")
    name = config.get("_class_name") or ", ".join(map(str, config.get("architectures") or ["no class"]))
    if name not in TRANSFORMER_CLASSES:
        raise UserError(
            f"{folder} holds {name}, not a PixArtTransformer2DModel or DiTTransformer2DModel; "
            "give the folder of the transformer, or of the whole pipeline"
        )
    return config


def find_weights(folder: Path) -> list[Path]:
    """The file or the shards that hold the weights of `folder`.

    Raises:
        UserError: none there, or a damaged index of shards.
    """
    names = [name for name in SINGLE_FILES if (folder / name).exists()][:1]
    for index in INDEXES:
        if (folder / index).exists():
            try:
                shards = {Path(name).name for name in read_json(folder / index, "")["weight_map"].values()}
            except (KeyError, AttributeError, TypeError) as error:
                raise UserError(f"{folder / index} is damaged: it is no index of shards") from error
            names = sorted(shards)
            break
    if not names:
        raise UserError(f"{folder} holds no {WEIGHTS}")
    return [folder / name for name in names]


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: no such file (`expected` says what should be there), or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {expected}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return value
