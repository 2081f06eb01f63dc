"""The manifest: every usable image of a data set, once, with its caption, label and split.

A folder with `manifest.jsonl` (one image a line), `dropped.jsonl` (what could not be used, and why)
and a card of kind "manifest". Everything downstream names images by `ImageRecord.id`.
"""

import array
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pixart_core.artifacts.card import CARD, Card, read_card
from pixart_core.artifacts.image_records import ImageRecord, StoredRecords, json_line
from pixart_core.artifacts.publish import staged_file
from pixart_core.errors import UserError

__all__ = ["ImageRecord", "Manifest", "image_id", "new_manifest", "read_manifest", "write_manifest"]

MANIFEST = "manifest.jsonl"
DROPPED = "dropped.jsonl"
SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The records of a data set; relative paths in them are relative to `folder`."""

    folder: Path
    records: Sequence[ImageRecord]
    label_names: tuple[str, ...] = ()

    def split(self, name: str) -> Sequence[ImageRecord]:
        """The records of split "train" or "heldout", in order."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is none of {', '.join(SPLITS)}")
        if isinstance(self.records, StoredRecords):
            return self.records.of_split(name)
        return [record for record in self.records if record.split == name]


def image_id(path: str, member: str | None = None) -> str:
    """16 hex digits from the path relative to the data's root (with /) and the member in it.

    Two folders that hold the same stem, or a.png beside a.jpg, get different ids; moving the whole
    data set changes none.
    """
    text = path if member is None else f"{path}\x1f{member}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


class ManifestWriter:
    """Writes the lines of a manifest as they come; made by `new_manifest`."""

    def __init__(self, folder: Path, kept: TextIO, dropped: TextIO) -> None:
        self._roots = (os.path.join(os.path.abspath(folder), ""), os.path.join(folder.resolve(), ""))
        self._kept = kept
        self._dropped = dropped
        self._ids = array.array("Q")

    def keep(self, record: ImageRecord) -> None:
        """Add an image; an absolute path inside the folder becomes relative, so that it can be moved."""
        self._ids.append(int(record.id, 16))
        self._kept.write(json_line(record.as_row() | {"path": _relative(record.path, self._roots)}))

    def drop(self, row: Mapping[str, str]) -> None:
        """Add an image that was left out: {"path", "reason"}, and more if there is more to say."""
        self._dropped.write(json_line(row))

    def finish(self) -> None:
        """Raises ValueError: two records have the same id."""
        _refuse_repeated(self._ids)
        self._kept.flush()
        self._dropped.flush()


@contextlib.contextmanager
def new_manifest(folder: Path) -> Iterator[ManifestWriter]:
    """A writer of the manifest in `folder`; at the end its files are in place, and the card is still to come.

    Raises:
        ValueError: two records have the same id.
        PixartError: the folder cannot be written.
    """
    with (
        staged_file(folder / MANIFEST) as kept_path,
        staged_file(folder / DROPPED) as dropped_path,
        kept_path.open("w", encoding="utf-8") as kept,
        dropped_path.open("w", encoding="utf-8") as dropped,
    ):
        writer = ManifestWriter(folder, kept, dropped)
        yield writer
        writer.finish()
        # Other lines than those it counts must not be found beside an old card.
        (folder / CARD).unlink(missing_ok=True)


def write_manifest(
    folder: Path, records: Iterable[ImageRecord], dropped: Iterable[Mapping[str, str]], card: Card
) -> None:
    """Publish a manifest in `folder`, its card last.

    Args:
        records: absolute paths inside `folder` are made relative, so that the folder can be moved.
        dropped: {"path", "reason"} of each image that was left out.
        card: of kind "manifest"; `details["label_names"]` names the classes, if there are any.

    Raises:
        ValueError: two records have the same id.
        PixartError: the folder cannot be written.
    """
    assert card.kind == "manifest", card.kind
    with new_manifest(folder) as writer:
        for record in records:
            writer.keep(record)
        for row in dropped:
            writer.drop(row)
    card.write(folder)


def _refuse_repeated(ids: "array.array[int]") -> None:
    numbers = np.sort(np.frombuffer(ids, np.uint64))
    repeated = numbers[1:][numbers[1:] == numbers[:-1]]
    if len(repeated):
        raise ValueError(f"two images have the id {int(repeated[0]):016x}")


def read_manifest(folder: Path | str) -> Manifest:
    """Read the manifest that `folder` is, or that it keeps (features and captions do, in `manifest/`).

    Raises:
        UserError: not a complete manifest. A damaged line raises, named, when its record is asked for.
    """
    folder = manifest_folder(folder) or Path(folder)
    card = Card.read(folder, "manifest")
    records = StoredRecords.open(folder / MANIFEST)
    expected = card.details.get("images", len(records))
    if len(records) != expected:
        raise UserError(
            f"{folder / MANIFEST}: holds {len(records)} images, but its card says {expected}; "
            "make the manifest again"
        )
    label_names: Sequence[str] = card.details.get("label_names") or ()
    return Manifest(folder, records, tuple(label_names))


def stream_manifest(folder: Path | str) -> Iterator[ImageRecord]:
    """The records of `read_manifest`, one at a time.

    Raises:
        UserError: as `read_manifest`, or a damaged line (named).
    """
    return iter(read_manifest(folder).records)


def manifest_folder(folder: Path | str) -> Path | None:
    """`folder` if it is a manifest, the manifest that it keeps in `manifest/`, or None."""
    for place in (Path(folder), Path(folder) / "manifest"):
        card = read_card(place)
        if card is not None and card["kind"] == "manifest":
            return place
    return None


def read_dropped(folder: Path | str) -> list[dict[str, str]]:
    """The {"path", "reason"} rows of what was left out of the manifest in `folder`."""
    return [row for _, row in _rows((manifest_folder(folder) or Path(folder)) / DROPPED)]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: not a JSON object")
                yield number, row
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the manifest again") from error


def _relative(path: str, roots: Iterable[str]) -> str:
    # Text, not Path: this runs for each of millions of images.
    for root in roots:
        if path.startswith(root):
            return path[len(root) :]
    return path
