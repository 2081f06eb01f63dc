"""Write the original layouts: an official PixArt `.pth` or a DiT `.pt`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.artifacts.publish import staged_file
from pixart_core.artifacts.tensor_file import cast, is_finite
from pixart_core.conversion.from_dit import NORM_EPS
from pixart_core.conversion.official import POS_EMBED, Y_EMBEDDING, Kind, position_table, to_original
from pixart_core.conversion.opened import OWN_ENTRY
from pixart_core.errors import PixartError, UserError
from pixart_core.models.build import Transformer
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.files import not_finite_notes

PIXART_FILE = "pixart.pth"
DIT_FILE = "dit.pt"


def write_official(
    folder: Path,
    model: Transformer,
    facts: ModelFacts,
    y_embedding: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Path, list[str]]:
    """Write `pixart.pth` ({"state_dict", ...}) or `dit.pt` ({"model", "ema"}, as sample.py reads it).

    Beside the weights lies a "pixart" entry of plain values (config, prediction type), which the original
    code ignores and reading back needs where shapes do not tell, e.g. the number of heads.

    Returns:
        The file and notes for the user.

    Raises:
        UserError: a DiT that the original code would compute differently, or a learned unconditional caption
            that is not there.
    """
    kind: Kind = "dit" if isinstance(model, DiTTransformer) else "pixart"
    notes: list[str] = []
    if isinstance(model, DiTTransformer):
        check_dit(model)
    weights = to_original(kind, model.state_dict())
    config = model.config
    table = position_table(config.width, config.sample_size, config.patch_size, config.interpolation_scale)
    weights[POS_EMBED] = table
    if kind == "pixart":
        if y_embedding is None and facts.uncond == "learned":
            raise UserError(
                "the model was trained with a learned unconditional caption, but there is no "
                "uncond.safetensors beside it to put into an official file"
            )
        if y_embedding is None:
            y_embedding = torch.zeros(facts.max_tokens, config.caption_channels)
            notes.append(
                "the model has no learned unconditional caption: y_embedding is zeros; with the official "
                "code, give the encoded empty caption as the unconditional one"
            )
        weights[Y_EMBEDDING] = y_embedding
    own = facts.to_details() | {"config": config.to_diffusers()}
    own["model"]["label_names"] = list(facts.label_names)
    content = {name: _alone(cast(name, weights.pop(name), dtype)) for name in list(weights)}
    notes += not_finite_notes([name for name, tensor in content.items() if not is_finite(tensor)])
    path = folder / (PIXART_FILE if kind == "pixart" else DIT_FILE)
    container = {"state_dict": content} if kind == "pixart" else {"model": content, "ema": content}
    _save(container | {OWN_ENTRY: own}, path)
    return path, notes


def _alone(tensor: Tensor) -> Tensor:
    """`tensor` without neighbours: torch.save writes all of the memory that a tensor is a part of."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.contiguous().clone()


def _save(content: dict[str, Any], path: Path) -> None:
    """Raises:
    PixartError: the disk is full."""
    with staged_file(path) as partial, partial.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a write that failed
            reason = getattr(error.__context__, "strerror", None) or str(error).splitlines()[0]
            raise PixartError(f"cannot write {path}: {reason}") from error


def check_dit(model: DiTTransformer) -> None:
    """Refuse what `dit.pt` cannot hold.

    Raises:
        UserError: the original code would compute something else.
    """
    config = model.config
    if config.timestep_freq_shift != 0:
        raise UserError(
            "the original DiT embeds timesteps with frequency shift 0 and this one (diffusers' class) with "
            "1, so it would compute something else there; use to=diffusers or to=pixart"
        )
    if config.embedders != "shared" or config.mlp_norm_eps != NORM_EPS:
        raise UserError(
            "the original DiT has one timestep and class embedder for all blocks; this one has several"
        )
    if config.interpolation_scale != 1:
        raise UserError("the original DiT has no position scale; this DiT's is not 1")
