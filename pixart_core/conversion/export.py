"""Write the original layouts: an official PixArt `.pth` or a DiT `.pt`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.from_dit import NORM_EPS
from pixart_core.conversion.official import POS_EMBED, Y_EMBEDDING, Kind, position_table, to_original
from pixart_core.conversion.opened import OWN_ENTRY
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer
from pixart_core.models.dit import DiTTransformer

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
        _check_dit(model)
    weights = to_original(kind, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    config = model.config
    table = position_table(config.width, config.sample_size, config.patch_size, config.interpolation_scale)
    weights[POS_EMBED] = table.to(dtype)
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
        weights[Y_EMBEDDING] = y_embedding.to(dtype)
    own = facts.to_details() | {"config": config.to_diffusers()}
    own["model"]["label_names"] = list(facts.label_names)
    content: dict[str, Any] = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    path = folder / (PIXART_FILE if kind == "pixart" else DIT_FILE)
    container = {"state_dict": content} if kind == "pixart" else {"model": content, "ema": content}
    torch.save(container | {OWN_ENTRY: own}, path)
    return path, notes


def _check_dit(model: DiTTransformer) -> None:
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
