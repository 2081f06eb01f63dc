"""Read and write a `transformer/` folder in diffusers' layout: config.json and safetensors."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pixart_core.artifacts.json_file import read_json
from pixart_core.artifacts.publish import write_json
from pixart_core.artifacts.tensor_file import write_tensors
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = "diffusion_pytorch_model.safetensors.index.json"
MAX_SHARD_SIZE = "10GB"
BLOCKS = "transformer_blocks."
_SHARD_PATTERN = "diffusion_pytorch_model{suffix}.safetensors"


def save_transformer(
    config: TransformerConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> list[str]:
    """Write config and weights; the weights first, so that a folder with a config is complete.

    Args:
        max_shard_size: bytes, or as "500MB"; more becomes several files and an index, with the names that
            `from_pretrained` looks for. Files of an earlier save that are not part of this one go.

    Returns:
        Names of the weights with NaN or infinite values.

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
    not_finite: list[str] = []
    for file, names in plan.filename_to_tensors.items():
        not_finite += write_tensors(folder / file, {name: weights[name] for name in names}, dtype)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / WEIGHTS_INDEX, index)
    else:
        (folder / WEIGHTS_INDEX).unlink(missing_ok=True)
    for old in (folder / WEIGHTS, *folder.glob(_SHARD_PATTERN.format(suffix="-?????-of-?????"))):
        if old.name not in plan.filename_to_tensors:
            old.unlink(missing_ok=True)
    write_json(folder / CONFIG, config.to_diffusers())
    return not_finite


def load_config(folder: Path) -> TransformerConfig:
    """Read `config.json` of a transformer folder.

    Raises:
        UserError: no such file, not JSON, or a model that is not PixArt or DiT.
    """
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder} holds no {CONFIG}: not a transformer folder")
    config = read_json(path, "expected a transformer folder")
    try:
        return TransformerConfig.from_diffusers(config)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error


def load_weights(folder: Path, read: Callable[[Path], dict[str, Tensor]] = load_file) -> dict[str, Tensor]:
    """Read the safetensors of a transformer folder, in one file or in shards.

    Args:
        read: gives the tensors of a file.

    Raises:
        UserError: missing, truncated, or not safetensors.
    """
    index = folder / WEIGHTS_INDEX
    files = shard_names(index) if index.exists() else [WEIGHTS]
    weights: dict[str, Tensor] = {}
    for name in files:
        try:
            weights |= read(folder / name)
        except FileNotFoundError as error:
            hint = "; `pixart convert --to pixart` reads fp16 and .bin, too" if name == WEIGHTS else ""
            raise UserError(f"{folder} holds no {name}{hint}") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / name} is damaged or no safetensors file: {error}") from error
    return weights


def shard_names(index: Path) -> list[str]:
    """Files that an index of shards names, all of them beside it.

    Raises:
        UserError: it is damaged.
    """
    try:
        names = sorted({Path(name).name for name in read_json(index, "")["weight_map"].values()})
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is damaged: it is no index of shards") from error
    if not names:
        raise UserError(f"{index} is damaged: it names no shards")
    return names


def load_transformer(folder: Path) -> Transformer:
    """Build the model of a transformer folder, or of a folder that holds `transformer/`, strictly.

    Raises:
        UserError: as above, or weights that do not fit the config (each key and shape is named).
    """
    folder = transformer_folder(folder)
    config = load_config(folder)
    weights = load_weights(folder)
    model = empty_model(config, weights, folder)
    model.load_state_dict(
        {name: tensor.float() for name, tensor in weights.items()}, strict=True, assign=True
    )
    return model.requires_grad_(True)


def check_transformer(folder: Path) -> None:
    """What `load_transformer` refuses, as far as configs and the headers of weight files tell.

    Raises:
        UserError: in its words.
    """
    folder = transformer_folder(folder)
    config = load_config(folder)
    empty_model(config, load_weights(folder, _read_shapes), folder)


def transformer_folder(folder: Path) -> Path:
    """`folder`, or the `transformer/` in it."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def _read_shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their values."""
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def empty_model(config: TransformerConfig, weights: Mapping[str, Tensor], source: object) -> Transformer:
    """The model of `config` without values, after comparing it with the `weights` meant for it.

    Raises:
        UserError: no such model can be, or see `check_weights`.
    """
    # First of all: a damaged number of layers would keep us building for hours.
    blocks = count_blocks(weights, BLOCKS, source)
    if config.num_layers != blocks:
        raise UserError(
            f"{source}: weights do not fit its config; num_layers {config.num_layers}, but the weights have "
            f"{blocks} blocks"
        )
    try:
        with torch.device("meta"):
            model = build_transformer(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        raise UserError(f"{source}: its config describes no model: {str(error).splitlines()[0]}") from error
    check_weights(model, weights, source)
    return model


def count_blocks(names: Iterable[str], prefix: str, source: object) -> int:
    """Number of blocks among `names`, which are `prefix`, a number from 0 on, a dot and more.

    Raises:
        UserError: a block is missing before the last one, e.g. because of one stray number.
    """
    numbered = re.compile(re.escape(prefix) + r"([0-9]{1,9})\.")
    found = {int(match[1]): name for name in names if (match := numbered.match(name))}
    count = next(number for number in itertools.count() if number not in found)
    stray = [number for number in found if number > count]
    if stray:
        more = f" and {len(stray) - 1} later blocks" if len(stray) > 1 else ""
        raise UserError(f"{source}: there is no {prefix}{count}, but {found[min(stray)]}{more}")
    return count


def some_of(names: Sequence[str]) -> str:
    """The first five, cut where they are long, and how many more there are."""
    return ", ".join(name[:100] for name in names[:5]) + (
        f" and {len(names) - 5} more" if len(names) > 5 else ""
    )


def not_finite_notes(names: Sequence[str]) -> list[str]:
    """What the user should know of weights with NaN or infinite values; nothing where there are none."""
    if not names:
        return []
    return [f"NaN or infinite values in {len(names)} of the weights ({some_of(names)}): of no use to a model"]


def check_weights(model: Transformer, weights: Mapping[str, Tensor], source: object) -> None:
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
        f"{kind}: {some_of(names)}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise UserError(f"{source}: weights do not fit its config; " + "; ".join(problems))
