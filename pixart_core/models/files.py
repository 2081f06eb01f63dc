"""Read and write a `transformer/` folder in diffusers' layout: config.json and safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pixart_core.artifacts.publish import write_json
from pixart_core.artifacts.tensor_file import write_tensors
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = "diffusion_pytorch_model.safetensors.index.json"
MAX_SHARD_SIZE = "10GB"
_SHARD_PATTERN = "diffusion_pytorch_model{suffix}.safetensors"


def save_transformer(
    config: TransformerConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Write config and weights; the weights first, so that a folder with a config is complete.

    Args:
        max_shard_size: bytes, or as "500MB"; more becomes several files and an index, with the names that
            `from_pretrained` looks for. Files of an earlier save that are not part of this one go.

    Raises:
        PixartError: the disk is full or the folder cannot be written.
        UserError: a weight is too large for `dtype`.
    """
    # Without data: sizes are those of the written type, whatever memory the weights share now.
    planned = {name: torch.empty(t.shape, dtype=dtype, device="meta") for name, t in weights.items()}
    plan = split_torch_state_dict_into_shards(
        planned, filename_pattern=_SHARD_PATTERN, max_shard_size=max_shard_size
    )
    if plan.is_sharded:
        # Old shards may have the new ones' names: without an index nobody takes a mixture for whole.
        (folder / WEIGHTS_INDEX).unlink(missing_ok=True)
    for file, names in plan.filename_to_tensors.items():
        write_tensors(folder / file, {name: weights[name] for name in names}, dtype)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / WEIGHTS_INDEX, index)
    else:
        (folder / WEIGHTS_INDEX).unlink(missing_ok=True)
    for old in (folder / WEIGHTS, *folder.glob(_SHARD_PATTERN.format(suffix="-?????-of-?????"))):
        if old.name not in plan.filename_to_tensors:
            old.unlink(missing_ok=True)
    write_json(folder / CONFIG, config.to_diffusers())


def load_config(folder: Path) -> TransformerConfig:
    """Read `config.json` of a transformer folder.

    Raises:
        UserError: no such file, not JSON, or a model that is not PixArt or DiT.
    """
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        return TransformerConfig.from_diffusers(config)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {CONFIG}: not a transformer folder") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: {error}") from error


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read the safetensors of a transformer folder, in one file or in shards.

    Raises:
        UserError: missing, truncated, or not safetensors.
    """
    index = folder / WEIGHTS_INDEX
    files = [WEIGHTS]
    if index.exists():
        try:
            files = sorted({Path(name).name for name in json.loads(index.read_text())["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is damaged or no index of shards: {error}") from error
    weights: dict[str, Tensor] = {}
    for name in files:
        try:
            weights |= load_file(folder / name)
        except FileNotFoundError as error:
            hint = "; `pixart convert --to pixart` reads fp16 and .bin, too" if name == WEIGHTS else ""
            raise UserError(f"{folder} holds no {name}{hint}") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / name} is damaged or no safetensors file: {error}") from error
    return weights


def load_transformer(folder: Path) -> Transformer:
    """Build the model of a transformer folder, or of a folder that holds `transformer/`, strictly.

    Raises:
        UserError: as above, or weights that do not fit the config (each key and shape is named).
    """
    if (folder / "transformer").is_dir():
        folder = folder / "transformer"
    config = load_config(folder)
    weights = load_weights(folder)
    with torch.device("meta"):
        model = build_transformer(config)
    check_weights(model, weights, folder)
    model.load_state_dict(
        {name: tensor.float() for name, tensor in weights.items()}, strict=True, assign=True
    )
    return model.requires_grad_(True)


def check_weights(model: Transformer, weights: dict[str, Tensor], source: object) -> None:
    """Every key is there, none is left over, every shape fits.

    Raises:
        UserError: names up to five of each kind of mistake.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    problems = [
        f"{kind}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise UserError(f"{source}: weights do not fit its config; " + "; ".join(problems))
