"""What turns images into features: Inception, CLIP, DINOv2, any vision model, or plain pixels."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from pixart_core.artifacts.card import fingerprint
from pixart_core.encoders.pretrained import loading, locate, refuse_missing, short_name, weight_hash
from pixart_core.errors import UserError
from pixart_core.evaluation.inception import FEATURES, SHA256_PREFIX, load_inception
from pixart_core.evaluation.preparation import (
    CLIP_MEAN,
    CLIP_STD,
    FID_PREPARATIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preparation,
    center_square_then,
    square,
)

PIXELS = "pixels-8x8"
CLIP_336, CLIP_B32, DINOV2_L = (
    "openai/clip-vit-large-patch14-336",
    "openai/clip-vit-base-patch32",
    "facebook/dinov2-large",
)
# Of the weights that `from_pretrained` downloads, for messages.
SIZES = {CLIP_336: "1.7 GB", CLIP_B32: "605 MB", DINOV2_L: "1.2 GB"}
DINOV2_SIDE = 224  # pixels
CPU_IMAGES = 4  # that Inception looks at together on a CPU


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Images to features.

    Attributes:
        id: names what is cached: network, weights and preparation.
        protocol: how results name the features; a standard one only with the weights that it means.
        standard: whether `protocol` is one that others publish numbers of.
        weights: hash of the weights, "" without any.
        dimensions: of the features.
        prepare: one image to the network's input.
        forward: inputs (batch, ...) to features (batch, dimensions).
    """

    id: str
    protocol: str
    standard: bool
    weights: str
    dimensions: int
    prepare: Preparation
    forward: Callable[[np.ndarray], Float[np.ndarray, "batch d"]]

    def __call__(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "batch d"]:
        return self.forward(np.stack([self.prepare(image) for image in images]))


def fid_extractor(protocol: str, weights: Path, device: torch.device) -> Extractor:
    """Inception's pool3 features, prepared as `protocol` of `FID_PREPARATIONS` says.

    With any but the published weights the results are not FID and are not called so.

    Raises:
        UserError: see `load_inception`.
    """
    model, sha256 = load_inception(weights)
    # On a CPU nearly twice as fast; features differ by rounding (2e-5, where the largest is 6.5).
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    standard = sha256 == SHA256_PREFIX
    name = f"fid/{protocol}@1" if standard else f"frechet/inception-{sha256}-{protocol}@1"

    def forward(pixels: np.ndarray) -> Float[np.ndarray, "batch d"]:
        with full_precision():
            images = torch.from_numpy(pixels).to(device, memory_format=layout)
            # The feature maps of many images are large, and a CPU takes and clears new memory for each.
            pieces = images.split(CPU_IMAGES if device.type == "cpu" else len(images))
            return torch.cat([model(piece) for piece in pieces]).cpu().numpy()

    return Extractor(
        f"inception-{sha256}-{protocol}@1",
        name,
        standard,
        sha256,
        FEATURES,
        FID_PREPARATIONS[protocol],
        forward,
    )


def cmmd_extractor(source: str, device: torch.device) -> Extractor:
    """Normalised CLIP image embeddings, as CMMD's reference code makes them.

    Raises:
        UserError: no such model, or one without weights of an image tower.
    """
    from transformers import CLIPVisionModelWithProjection

    model, weights, name = load_model(CLIPVisionModelWithProjection, source, "image_encoder", "cmmd", device)
    prepare = center_square_then(model.config.image_size, CLIP_MEAN, CLIP_STD)

    def forward(pixels: np.ndarray) -> Float[np.ndarray, "batch d"]:
        with full_precision():
            embeds = model(pixel_values=torch.from_numpy(pixels).to(device)).image_embeds
            return (embeds / embeds.norm(dim=-1, keepdim=True)).float().cpu().numpy()

    standard = name == short_of(CLIP_336) and _is_clip_336(model.config)
    protocol = "cmmd/l14-336@1" if standard else f"cmmd/{name}@1"
    return Extractor(
        f"cmmd-{weights}@1", protocol, standard, weights, model.config.projection_dim, prepare, forward
    )


def dinov2_extractor(source: str, device: torch.device) -> Extractor:
    """DINOv2's class token after the last norm, for FD-DINOv2 (Stein et al. 2023).

    Raises:
        UserError: no such model.
    """
    from transformers import Dinov2Model

    model, weights, name = load_model(Dinov2Model, source, "image_encoder", "fd-dinov2", device)
    grid = DINOV2_SIDE // model.config.patch_size
    _fix_positions(model, grid)
    prepare = square(grid * model.config.patch_size, IMAGENET_MEAN, IMAGENET_STD)

    def forward(pixels: np.ndarray) -> Float[np.ndarray, "batch d"]:
        with full_precision():
            output = model(pixel_values=torch.from_numpy(pixels).to(device))
            return output.last_hidden_state[:, 0].float().cpu().numpy()

    config = model.config
    shape = (config.hidden_size, config.num_hidden_layers, config.patch_size)
    standard = name == short_of(DINOV2_L) and shape == (1024, 24, 14)
    protocol = "fd-dinov2/l14@1" if standard else f"fd-dinov2/{name}@1"
    return Extractor(f"dinov2-{weights}@1", protocol, standard, weights, config.hidden_size, prepare, forward)


def features_extractor(name: str, device: torch.device) -> Extractor:
    """What `bench: frechet` compares: "pixels-8x8", or hub id or path of a transformers vision model.

    Raises:
        UserError: no such model, or one without image features.
    """
    if name != PIXELS:
        return _vision_model(name, device)
    return Extractor(PIXELS, f"frechet/{PIXELS}", False, "", 192, _pixels, lambda batch: batch)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No gradients, and on a GPU the same float32 each time: cuDNN's TF32 would cost three digits."""
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


def load_model(kind: Any, source: str, part: str, bench: str, device: torch.device) -> tuple[Any, str, str]:
    """(model in evaluation mode, hash of its weights, short name) of a hub id or folder.

    Raises:
        UserError: it is not here and cannot be had; names the model, its size and what to do.
    """
    where = locate_model(source, part, bench)
    with loading(source, part):
        model, info = kind.from_pretrained(**where, output_loading_info=True)
    refuse_missing(source, part, [key for key in info["missing_keys"] if not key.endswith("position_ids")])
    return model.to(device).eval().requires_grad_(False), weight_hash(model), short_of(short_name(source))


def locate_model(source: str, part: str, bench: str) -> dict[str, Any]:
    """Where a model lies, as `locate`.

    Raises:
        UserError: it is not here and cannot be had; names the model, its size and what to do.
    """
    try:
        return locate(source, part)
    except UserError as error:
        size = f" ({SIZES[source]})" if source in SIZES else ""
        reason = str(error).removeprefix(f"{part} {source!r}: ")
        raise UserError(
            f"bench {bench} needs {source}{size}: {reason}; give a folder of its download"
        ) from error


def short_of(source: str) -> str:
    """The last part of a hub id or path: what a folder of its download is called."""
    return source.rstrip("/").split("/")[-1]


def _is_clip_336(config: Any) -> bool:
    return (config.hidden_size, config.num_hidden_layers, config.image_size) == (1024, 24, 336)


def _fix_positions(model: Any, grid: int) -> None:
    """Resample the position embeddings to `grid` x `grid` as DINOv2's own code does.

    It adds 0.1 to the side before dividing; transformers divides exactly, which moves every feature a bit.
    """
    positions = model.embeddings.position_embeddings.detach()
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / side
    resampled = torch.nn.functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    assert resampled.shape[-2:] == (grid, grid), "the source's rule gives the grid of patches"
    flat = resampled.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)
    model.embeddings.position_embeddings = torch.nn.Parameter(
        torch.cat([positions[:, :1], flat], 1), requires_grad=False
    )


def _pixels(image: Image.Image) -> Float[np.ndarray, " 192"]:
    """RGB in 0..1, averaged over the cells of an 8 x 8 grid."""
    small = image.convert("RGB").resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64).ravel() / 255


def _vision_model(name: str, device: torch.device) -> Extractor:
    from transformers import AutoImageProcessor, AutoModel

    try:
        place = locate(name, "image_encoder")  # without it a machine without network tries for a minute
        processor = AutoImageProcessor.from_pretrained(**place, backend="pil")
        model = AutoModel.from_pretrained(**place)
    except UserError as error:
        raise UserError(f"features: {name} is neither {PIXELS} nor a vision model: {error}") from error
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"features: {name} is neither {PIXELS} nor a vision model ({reason})") from error
    model = model.to(device).eval()
    # Two-tower models (CLIP, SigLIP) keep their image tower behind a method.
    tower = getattr(model, "get_image_features", model)

    def prepare(image: Image.Image) -> np.ndarray:
        return processor(images=[image.convert("RGB")], return_tensors="np")["pixel_values"][0]

    def forward(pixels: np.ndarray) -> Float[np.ndarray, "batch d"]:
        with full_precision():
            output = tower(pixel_values=torch.from_numpy(pixels).to(device))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = output.last_hidden_state.mean(1)
        return pooled.flatten(1).float().cpu().numpy()

    weights = weight_hash(model)
    prepared = fingerprint(processor.to_dict())  # equal weights may come with another size or scaling
    blank = Image.new("RGB", (64, 64))
    dimensions = forward(prepare(blank)[None]).shape[1]
    return Extractor(
        f"vision-{weights}-{prepared}@1",
        f"frechet/{_label(name)}",
        False,
        weights,
        dimensions,
        prepare,
        forward,
    )


def _label(name: str) -> str:
    """How results name the extractor: paths by their last part, so that results compare across machines."""
    return Path(name).name if Path(name).is_dir() else name
