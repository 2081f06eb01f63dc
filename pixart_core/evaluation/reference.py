"""What samples are compared with: real images of any kind that is read, or their saved statistics."""

import dataclasses
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixart_core.artifacts.card import card_for, read_card
from pixart_core.artifacts.image_records import ImageRecord
from pixart_core.artifacts.publish import write_bytes
from pixart_core.data.images import ImageReader
from pixart_core.data.scan import manifest_for
from pixart_core.errors import UserError
from pixart_core.evaluation.extractors import Extractor
from pixart_core.evaluation.frechet import Gaussian
from pixart_core.evaluation.pictures import Pictures, recorded_pictures
from pixart_core.launch import Processes
from pixart_core.progress import Progress
from pixart_core.recipe.data import DataOptions

STATISTICS = ".npz"


@dataclasses.dataclass(frozen=True)
class RealImages:
    """Real images.

    Attributes:
        compared: those that samples are compared with: the held-out ones, if some are.
        others: as many of the rest as a sample set may have, for what real images score themselves.
        left_out: images of `compared` beyond the limit.
    """

    compared: Sequence[ImageRecord]
    others: Sequence[ImageRecord]
    reader: ImageReader
    left_out: int = 0

    @property
    def pictures(self) -> Pictures:
        return recorded_pictures("reference", self.compared, self.reader)

    def as_many(self, count: int) -> Pictures | None:
        """`count` real images of other captions than the compared ones; None if there are too few."""
        if len(self.others) < count:
            return None
        return recorded_pictures(f"{count} real images", self.others[:count], self.reader)


def is_statistics(source: str) -> bool:
    """Whether `source` is a file of statistics, not images."""
    return source.endswith(STATISTICS)


def read_real_images(
    source: str, limit: int | None, scans: Path, progress: Progress, processes: Processes = Processes()
) -> RealImages:
    """Find the images of `source`, as `--data` of other commands does; the scan is kept in `scans`.

    No image is left out for its shape; what cannot be read at all is counted and told.

    Raises:
        UserError: nothing there, or too much of it unusable.
    """
    values: dict[str, object] = {"data": source}
    if read_card(Path(source)) is None:
        values["filters"] = {"aspect": None}
    options = DataOptions.model_validate(values)
    folder = scans / card_for("manifest", options, {}).fingerprint
    manifest = manifest_for(options, folder, progress, processes)
    heldout, train = manifest.split("heldout"), manifest.split("train")
    chosen, others = (heldout, train) if heldout else (train, [])
    left_out = max(0, len(chosen) - limit) if limit is not None else 0
    return RealImages(chosen[:limit], others, ImageReader(manifest.folder), left_out)


def read_statistics(path: Path, extractor: Extractor, told: str | None) -> Gaussian:
    """Mean and covariance from `path`, if they belong to the features of `extractor`.

    Args:
        path: ours (mu, sigma, n, protocol, weights) or pytorch-fid's (mu, sigma), which says nothing of how
            it was made.
        told: the FID protocol that the user says of the latter; default: pytorch-fid.

    Raises:
        UserError: no such file, damaged, or of other features or another protocol.
    """
    arrays = _load(path)
    count = int(arrays["n"]) if "n" in arrays else None
    if "protocol" in arrays:
        protocol, weights = str(arrays["protocol"]), str(arrays.get("weights", ""))
    else:
        protocol, weights = f"fid/{told or 'pytorch-fid'}@1", extractor.weights
    if protocol != extractor.protocol or weights != extractor.weights:
        hint = ""
        if "protocol" not in arrays and told is None:
            hint = " (it does not say; if it was made otherwise than by pytorch-fid, set reference_protocol)"
        raise UserError(
            f"{path}: statistics of {protocol}{_of(weights)}{hint}, but the samples' are of "
            f"{extractor.protocol}{_of(extractor.weights)}: they cannot be compared"
        )
    mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in ("mu", "sigma"))
    d = extractor.dimensions
    if mean.shape != (d,) or covariance.shape != (d, d):
        raise UserError(f"{path}: mu {mean.shape} and sigma {covariance.shape} are not of {d} features")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: holds numbers that are not finite")
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8):
        raise UserError(f"{path}: sigma is not symmetric, so it is no covariance")
    return Gaussian(mean, (covariance + covariance.T) / 2, count)


def write_statistics(path: Path, gaussian: Gaussian, extractor: Extractor) -> None:
    """Keep statistics for later runs; pytorch-fid reads them too.

    Raises:
        PixartError: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu=gaussian.mean,
        sigma=gaussian.covariance,
        n=np.array(gaussian.count),
        protocol=np.array(extractor.protocol),
        weights=np.array(extractor.weights),
    )
    write_bytes(path, buffer.getvalue())


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"reference: no such file {path}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path}: cannot be read as statistics ({error})") from error
    missing = sorted({"mu", "sigma"} - arrays.keys())
    if missing:
        raise UserError(
            f"{path}: holds no {' and no '.join(missing)}; statistics are an .npz with mu and sigma"
        )
    return arrays


def _of(weights: str) -> str:
    return f" (weights {weights})" if weights else ""
