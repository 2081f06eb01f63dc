"""Files of a transformer folder of diffusers: its config, and which of several weights count."""

from pathlib import Path
from typing import Any

from pixart_core.artifacts.json_file import read_json
from pixart_core.errors import UserError
from pixart_core.models.config import OWN_CLASS
from pixart_core.models.files import CONFIG, WEIGHTS, WEIGHTS_INDEX, shard_names

PICKLED = WEIGHTS.replace(".safetensors", ".bin")
# (index of shards, single file): safetensors before pickles, of these full precision before half; shards
# before a single file of the same kind, as in diffusers.
CHOICES = (
    (WEIGHTS_INDEX, WEIGHTS),
    (f"{WEIGHTS}.index.fp16.json", WEIGHTS.replace(".safetensors", ".fp16.safetensors")),
    (f"{PICKLED}.index.json", PICKLED),
    (f"{PICKLED}.index.fp16.json", PICKLED.replace(".bin", ".fp16.bin")),
)
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
    for index, single in CHOICES:
        if (folder / index).exists():
            return [folder / name for name in shard_names(folder / index)]
        if (folder / single).exists():
            return [folder / single]
    raise UserError(f"{folder} holds no {WEIGHTS}")
