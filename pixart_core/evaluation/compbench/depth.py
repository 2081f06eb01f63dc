"""Depth maps for the 3D rules: DPT (Ranftl et al. 2021) as the official code runs it, or its dumped PNGs."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch.nn import functional as F

from pixart_core.encoders.pretrained import loading, locate, refuse_missing, weight_hash
from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.boxes import Box, in_frame

SIZE = "490 MB"
_SIDE = 480  # pixels that DPT sees, whatever the image

DepthMap = Float[np.ndarray, "height width"]
"""0..1, larger is nearer, in the image's frame."""


@dataclasses.dataclass(frozen=True)
class DepthModel:
    """Makes depth maps.

    Attributes:
        name: part of the protocol's id; empty for the official model.
        key: changes with the weights.
    """

    name: str
    key: str
    estimate: Callable[[Image.Image], DepthMap]


def load_depth(source: str, device: torch.device) -> DepthModel:
    """A DPT model from a hub id or folder.

    Raises:
        UserError: no such model, or one of another class.
    """
    from transformers import DPTForDepthEstimation

    with loading(source, "DPT depth model"):
        loaded: Any = DPTForDepthEstimation.from_pretrained(**locate(source, "dpt"), output_loading_info=True)
    model, report = loaded
    refuse_missing(source, "DPT depth model", list(report["missing_keys"]))
    model = model.to(device).eval()
    # Position embeddings are resized to what comes in; the hybrid's check of the size comes before that.
    model.dpt.embeddings.image_size = (_SIDE, _SIDE)

    @torch.inference_mode()
    def estimate(image: Image.Image) -> DepthMap:
        square = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)
        depth = model(pixel_values=pixels[None].to(device)).predicted_depth[0].float().cpu()
        return in_frame_of_image(depth, image.size)

    official = model.config.is_hybrid and model.config.hidden_size == 768
    short = Path(source).name if Path(source).is_dir() else source.rpartition("/")[2]
    name = "" if official else "-" + re.sub(r"[^A-Za-z0-9._-]+", "-", short)
    return DepthModel(name, f"dpt{_SIDE}-{weight_hash(model)}", estimate)


def in_frame_of_image(depth: Float[torch.Tensor, "h w"], size: tuple[int, int]) -> DepthMap:
    """A network's output as the official code stores and reads it: 0..255 in steps, at the image's size.

    Args:
        size: (width, height) of the image.
    """
    low, high = depth.min(), depth.max()
    scaled = (depth - low) / (high - low)
    width, height = size
    whole = F.interpolate(scaled[None, None], size=(height, width), mode="bilinear", align_corners=True)
    return from_png(Image.fromarray(255 * whole[0, 0].numpy()).convert("L"))


def from_png(image: Image.Image) -> DepthMap:
    """A stored depth map as the rules read it."""
    return np.asarray(in_frame(image.convert("L")), dtype=np.float32) / np.float32(255)


def find_depth(folder: Path, names: list[str]) -> Path:
    """The depth map of an image among PNGs of the official code (its `labels/depth`).

    Args:
        names: what the image may be called.

    Raises:
        UserError: none of them is there.
    """
    for name in names:
        for path in (folder / name, folder / Path(name).name):
            if path.is_file():
                return path
    raise UserError(f"compbench.depth: {folder} has no depth map of {names[0]}")


def read_depth(folder: Path, names: list[str]) -> DepthMap:
    """The depth map that `find_depth` finds.

    Raises:
        UserError: it is not there, or no image.
    """
    path = find_depth(folder, names)
    try:
        with Image.open(path) as image:
            return from_png(image)
    except OSError as error:
        raise UserError(f"{path}: no depth map that can be read ({error})") from error


def mean_depth(depth: DepthMap, box: Box) -> float:
    """Mean of `depth` inside `box`; NaN if the box holds no pixel.

    The official code indexes its map (height, width) by x first, then y. So does this.
    """
    left, top, right, bottom = (int(side) for side in box.xyxy)
    inside = depth[left:right, top:bottom]
    return float(inside.mean(dtype=np.float64)) if inside.size else math.nan
