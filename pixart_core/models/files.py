"""Read and write a `transformer/` folder in diffusers' layout: config.json and safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixart_core.artifacts.publish import staged_file, write_json
from pixart_core.errors import PixartError, UserError
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = "diffusion_pytorch_model.safetensors.index.json"


def save_transformer(
    config: TransformerConfig, weights: dict[str, Tensor], folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write config and weights; the weights first, so that a folder with a config is complete.

    Raises:
        PixartError: the disk is full or the folder cannot be written.
    """
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
    with staged_file(folder / WEIGHTS) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(tensors, partial, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, in its own words
            raise PixartError(f"cannot write {folder / WEIGHTS}: {error}") from error
        partial.chmod(mode)  # some versions of safetensors let nobody else read
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
            raise UserError(f"{folder} holds no {name}") from error
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
