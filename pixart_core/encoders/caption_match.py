"""Whether captions describe the pictures at hand: ids come from names, and other data may have the same."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pixart_core.artifacts.image_records import ImageRecord, digest_number
from pixart_core.artifacts.manifest import manifest_folder, read_manifest

_TOLERANCE = 0.05  # of height/width: scaled copies of small pictures are rounded
_FACTS = np.dtype([("id", np.uint64), ("ratio", np.float32), ("digest", np.uint64)])


@dataclasses.dataclass(frozen=True)
class PictureMatch:
    """How pictures differ from those that were captioned.

    Attributes:
        common: images that both have.
        other_files: those of them whose digests are known and differ.
        other_shapes: those without a known digest on both sides whose aspect ratio differs. Scaled copies
            pass; cropped ones do not, so this is a reason to tell, not to refuse.
        example: id of one that differs, of `other_files` if there are any; "" if none does.
        folder: the manifest of what was captioned; None if there is none, and then nothing is known.
    """

    common: int = 0
    other_files: int = 0
    other_shapes: int = 0
    example: str = ""
    folder: Path | None = None


def compare_pictures(captions: Path, records: Iterable[ImageRecord]) -> PictureMatch:
    """Compare pictures with those that `captions` were made of, by digest or else by aspect ratio."""
    folder = manifest_folder(captions)
    if folder is None:
        return PictureMatch()
    theirs, ours = _facts(read_manifest(folder).records), _facts(records)
    ids, place, other = np.intersect1d(theirs["id"], ours["id"], assume_unique=True, return_indices=True)
    theirs, ours = theirs[place], ours[other]
    known = (theirs["digest"] != 0) & (ours["digest"] != 0)
    files = known & (theirs["digest"] != ours["digest"])
    shapes = ~known & (np.abs(np.log(theirs["ratio"] / ours["ratio"])) > _TOLERANCE)
    differing = ids[files] if files.any() else ids[shapes]
    example = f"{differing[0]:016x}" if len(differing) else ""
    return PictureMatch(len(ids), int(files.sum()), int(shapes.sum()), example, folder)


def _facts(records: Iterable[ImageRecord]) -> np.ndarray:
    rows = (
        (int(record.id, 16), record.height / record.width, digest_number(record.digest)) for record in records
    )
    return np.fromiter(rows, _FACTS)
