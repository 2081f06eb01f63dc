"""Fréchet distance between Gaussians fitted to image features, in float64.

The number means nothing without its feature extractor, so results carry the extractor's name. With
anything but the TensorFlow port of Inception it is not FID and is never called so.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from pixart_core.errors import UserError

Extractor = Callable[[Sequence[Image.Image]], Float[np.ndarray, "batch features"]]
PIXELS = "pixels-8x8"
BATCH = 32
JACKKNIFE_GROUPS = 10


@dataclass(frozen=True)
class Moments:
    """Count, mean and centred second moment of features, mergeable without loss.

    Chan, Golub and LeVeque 1979: centred float64 sums keep 16 digits where uncentred ones keep 3.
    """

    count: int
    mean: Float[np.ndarray, " features"]
    scatter: Float[np.ndarray, "features features"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "batch features"]) -> "Moments":
        values = np.asarray(features, dtype=np.float64)
        mean = values.mean(0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def merged(self, other: "Moments") -> "Moments":
        """Moments of both samples together."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count),
        )

    @property
    def covariance(self) -> Float[np.ndarray, "features features"]:
        return self.scatter / (self.count - 1)


def merge(moments: Iterable[Moments]) -> Moments:
    """Moments of all samples together."""
    first, *rest = moments
    for other in rest:
        first = first.merged(other)
    return first


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a) + Tr(S_b) - 2 Tr((S_a S_b)^1/2).

    The last trace is the nuclear norm of S_a^1/2 S_b^1/2: symmetric square roots and one SVD, exact
    also for singular covariances, where `scipy.linalg.sqrtm` loses digits or turns complex.

    Raises:
        UserError: fewer than two images on one side.
    """
    if min(a.count, b.count) < 2:
        raise UserError("a Frechet distance needs at least 2 images on each side")
    cross = np.linalg.svd(_square_root(a.covariance) @ _square_root(b.covariance), compute_uv=False).sum()
    delta = a.mean - b.mean
    return float(delta @ delta + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _square_root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    values, vectors = np.linalg.eigh(matrix)
    # Rounding makes zero eigenvalues slightly negative.
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet_with_error(
    features: Float[np.ndarray, "n features"], reference: Moments
) -> tuple[float, float | None]:
    """(distance of `features` to `reference`, its delete-10 % jackknife standard error).

    A bootstrap would repeat images and inflate the distance. The error is None below 20 images.
    """
    groups = np.array_split(np.arange(len(features)), JACKKNIFE_GROUPS)
    if len(features) < 2 * JACKKNIFE_GROUPS:
        return frechet_distance(Moments.of(features), reference), None
    parts = [Moments.of(features[group]) for group in groups]
    left_out = [
        frechet_distance(merge(parts[:i] + parts[i + 1 :]), reference) for i in range(JACKKNIFE_GROUPS)
    ]
    share = (JACKKNIFE_GROUPS - 1) / JACKKNIFE_GROUPS
    error = np.sqrt(share * ((np.array(left_out) - np.mean(left_out)) ** 2).sum())
    return frechet_distance(merge(parts), reference), float(error)


def load_extractor(name: str) -> Extractor:
    """The feature extractor called `name`: "pixels-8x8", or hub id or path of a vision model.

    Raises:
        UserError: no such model, or one without image features.
    """
    return _pixels if name == PIXELS else _vision_model(name)


def extractor_label(name: str) -> str:
    """How results name the extractor: paths by their last part, so that results compare across machines."""
    return Path(name).name if Path(name).is_dir() else name


def extract(images: Iterable[Image.Image], extractor: Extractor) -> Float[np.ndarray, "n features"]:
    """Features of all images, in batches of `BATCH`."""
    batch: list[Image.Image] = []
    rows: list[Any] = []
    for image in images:
        batch.append(image)
        if len(batch) == BATCH:
            rows.append(extractor(batch))
            batch = []
    if batch:
        rows.append(extractor(batch))
    return np.concatenate(rows).astype(np.float64)


def _pixels(images: Sequence[Image.Image]) -> Float[np.ndarray, "batch 192"]:
    """RGB in 0..1, averaged over the cells of an 8 x 8 grid."""
    small = [image.convert("RGB").resize((8, 8), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, dtype=np.float64).ravel() / 255 for image in small])


def _vision_model(name: str) -> Extractor:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        model = AutoModel.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"features: {name} is neither {PIXELS} nor a vision model ({reason})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()

    def features(images: Sequence[Image.Image]) -> Float[np.ndarray, "batch features"]:
        pixels = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        with torch.no_grad():
            pixel_values = pixels["pixel_values"].to(device)
            # Two-tower models (CLIP, SigLIP) keep their image tower behind a method.
            forward = getattr(model, "get_image_features", model)
            output = forward(pixel_values=pixel_values)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = output.last_hidden_state.mean(1)
        return pooled.flatten(1).double().cpu().numpy()

    return features
