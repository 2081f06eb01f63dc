"""`uncond.safetensors`: the learned unconditional caption of the released models, beside `transformer/`.

diffusers' layout has no place for `y_embedder.y_embedding`. Without it a converted checkpoint could
neither be sampled as the reference does nor be written back as the same official file.
"""

from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pixart_core.artifacts.publish import write_bytes
from pixart_core.errors import UserError

UNCOND = "uncond.safetensors"
NAME = "y_embedding"


def write_uncond(folder: Path, y_embedding: Float[Tensor, "l caption"]) -> None:
    """Publish the embedding in a checkpoint folder, in the type that it has."""
    write_bytes(folder / UNCOND, save({NAME: y_embedding.detach().cpu().contiguous()}))


def read_uncond(folder: Path) -> Float[Tensor, "l caption"] | None:
    """The embedding of a checkpoint folder; None when it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / UNCOND
    if not path.exists():
        return None
    try:
        y_embedding = load_file(path)[NAME]
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}; convert the original again") from error
    if y_embedding.ndim != 2 or not len(y_embedding):
        shape = tuple(y_embedding.shape)
        raise UserError(f"{path} is damaged: {NAME} has shape {shape}, not (tokens, width)")
    return y_embedding


def missing_uncond(source: object) -> UserError:
    """The mistake of a model that was trained with a learned unconditional caption which is not there."""
    return UserError(
        f"{source} was trained with a learned unconditional caption, but there is no {UNCOND} beside it; "
        "copy the file from where the checkpoint came from, or convert the original again"
    )
