"""From a picture to a network's input, for each protocol: resizing is where tools differ most.

| protocol | resizing to 299 x 299 | scaling |
|---|---|---|
| coco256-cleanfid | centre crop, Lanczos to 256, then clean-fid's: antialiased bicubic | (x - 128) / 128 |
| pytorch-fid | bilinear without antialiasing, half-pixel centres | 2 x - 1 |
| torch-fidelity | bilinear without antialiasing as TensorFlow 1: corners at zero | (x - 128) / 128 |

See Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation".
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch.nn import functional as F

from pixart_core.evaluation.inception import SIDE

Input = Float[np.ndarray, "3 height width"]
Preparation = Callable[[Image.Image], Input]

COCO_SIDE = 256  # pixels; what the baselines of the paper's Table 2 were measured at
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def coco256_cleanfid(image: Image.Image) -> Input:
    """Centre crop to the short side, Lanczos to 256 pixels, then `cleanfid`."""
    if image.size != (COCO_SIDE, COCO_SIDE):
        image = center_square(image).resize((COCO_SIDE, COCO_SIDE), Image.Resampling.LANCZOS)
    return cleanfid(image)


def cleanfid(image: Image.Image) -> Input:
    """clean-fid's "clean" mode: each channel as float, Pillow's antialiased bicubic, clipped."""
    channels = [
        Image.fromarray(np.asarray(channel, dtype=np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for channel in image.convert("RGB").split()
    ]
    pixels = np.stack([np.asarray(channel).clip(0, 255) for channel in channels])
    return ((pixels - 128) / 128).astype(np.float32)


def pytorch_fid(image: Image.Image) -> Input:
    """pytorch-fid: torch's bilinear interpolation in 0..1, without antialiasing."""
    pixels = torch.from_numpy(_channels_first(image)) / 255
    resized = F.interpolate(pixels[None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    return (2 * resized - 1).numpy()


def torch_fidelity(image: Image.Image) -> Input:
    """torch-fidelity and torchmetrics: bilinear as TensorFlow 1 does it, in 0..255."""
    resized = tensorflow1_bilinear(_channels_first(image), SIDE, SIDE)
    return ((resized - np.float32(128)) / np.float32(128)).astype(np.float32)


FID_PREPARATIONS: dict[str, Preparation] = {
    "coco256-cleanfid": coco256_cleanfid,
    "pytorch-fid": pytorch_fid,
    "torch-fidelity": torch_fidelity,
}


def tensorflow1_bilinear(pixels: Float[np.ndarray, "c h w"], height: int, width: int) -> Input:
    """`tf.image.resize_bilinear` of TensorFlow 1 (align_corners off), in float32 as its kernel.

    Output pixel i lies at i * (input / output) of the input: the first pixel's centre is kept, the last
    one's is not, and nothing is averaged when shrinking.
    """
    top, bottom, dy = _places(pixels.shape[1], height)
    left, right, dx = _places(pixels.shape[2], width)
    upper, lower = pixels[:, top], pixels[:, bottom]
    above = upper[:, :, left] + (upper[:, :, right] - upper[:, :, left]) * dx
    below = lower[:, :, left] + (lower[:, :, right] - lower[:, :, left]) * dx
    return above + (below - above) * dy[:, None]


def _places(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower neighbour, upper neighbour, share of the upper one) of each output pixel."""
    at = np.arange(out, dtype=np.float32) * np.float32(size / out)
    low = at.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def square(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Preparation:
    """Pillow's antialiased bicubic to side x side pixels, whatever the aspect, then normalised.

    As the reference code of FD-DINOv2 does (Stein et al. 2023).
    """

    def prepare(image: Image.Image) -> Input:
        return _normalised(image.resize((side, side), Image.Resampling.BICUBIC), mean, std)

    return prepare


def center_square_then(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Preparation:
    """Centre crop to the short side, then as `square`: CMMD's reference code (Jayasumana et al. 2024)."""
    prepare = square(side, mean, std)
    return lambda image: prepare(center_square(image))


def short_side_then_crop(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Preparation:
    """Bicubic until the short side is `side`, then the centre: what CLIP was trained with."""

    def prepare(image: Image.Image) -> Input:
        short = min(image.size)
        # The long side is cut off, not rounded, as in OpenAI's and Hugging Face's processors.
        width, height = (side * length // short for length in image.size)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        return _normalised(resized.crop((left, top, left + side, top + side)), mean, std)

    return prepare


def center_square(image: Image.Image) -> Image.Image:
    """The largest centred square, in whole pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _normalised(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> Input:
    pixels = _channels_first(image) / np.float32(255)
    shift, scale = (np.array(values, dtype=np.float32)[:, None, None] for values in (mean, std))
    return (pixels - shift) / scale


def _channels_first(image: Image.Image) -> Float[np.ndarray, "3 h w"]:
    return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1))
