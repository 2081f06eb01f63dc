"""Whether captions describe the pictures at hand: ids come from names, and other data may have the same."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pixart_core.artifacts.manifest import ImageRecord, manifest_folder, read_manifest

_TOLERANCE = 0.05  # of height/width: scaled copies of small pictures are rounded


def other_shapes(captions: Path, records: Iterable[ImageRecord]) -> tuple[int, int, str]:
    """Compare the aspect ratios of pictures with those of the pictures that were captioned.

    Scaled copies pass; cropped ones do not, so this is a reason to tell, not to refuse.

    Returns:
        how many differ, how many are known to both, and the id of one that differs ("" if none does).
        Nothing is known of captions without a manifest.
    """
    folder = manifest_folder(captions)
    if folder is None:
        return 0, 0, ""
    theirs, ours = _shapes(read_manifest(folder).records), _shapes(records)
    ids, place, other = np.intersect1d(theirs["id"], ours["id"], assume_unique=True, return_indices=True)
    differs = np.abs(np.log(theirs["ratio"][place] / ours["ratio"][other])) > _TOLERANCE
    return int(differs.sum()), len(ids), f"{ids[differs][0]:016x}" if differs.any() else ""


def _shapes(records: Iterable[ImageRecord]) -> np.ndarray:
    rows = ((int(record.id, 16), record.height / record.width) for record in records)
    return np.fromiter(rows, np.dtype([("id", np.uint64), ("ratio", np.float32)]))
