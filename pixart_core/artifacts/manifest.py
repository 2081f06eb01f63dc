"""The manifest: every usable image of a data set, once, with its caption, label and split.

A folder with `manifest.jsonl` (one image a line), `dropped.jsonl` (what could not be used, and why)
and a card of kind "manifest". Everything downstream names images by `ImageRecord.id`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import Card, read_card
from pixart_core.artifacts.publish import write_text
from pixart_core.errors import UserError

MANIFEST = "manifest.jsonl"
DROPPED = "dropped.jsonl"
SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One image and what is known about it.

    Attributes:
        id: 16 hex digits, stable: see `image_id`. Never a file stem.
        path: file, or tar archive; relative to the manifest's folder if inside it, else absolute;
            `hf:ID/split` for a hub data set.
        member: name inside the tar archive, row number of a hub data set, None for a plain file.
        width: pixels, after EXIF rotation.
        height: pixels, after EXIF rotation.
        caption: the caption that came with the image.
        label: class index of stage 1, into `Manifest.label_names`.
        split: "train" or "heldout".
        meta: the sample's JSON, or the exact ground truth of a generated picture.
    """

    id: str
    path: str
    member: str | None
    width: int
    height: int
    caption: str | None
    label: int | None
    split: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The records of a data set; relative paths in them are relative to `folder`."""

    folder: Path
    records: tuple[ImageRecord, ...]
    label_names: tuple[str, ...] = ()

    def split(self, name: str) -> list[ImageRecord]:
        """The records of split "train" or "heldout", in order."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is none of {', '.join(SPLITS)}")
        return [record for record in self.records if record.split == name]


def image_id(path: str, member: str | None = None) -> str:
    """16 hex digits from the path relative to the data's root (with /) and the member in it.

    Two folders that hold the same stem, or a.png beside a.jpg, get different ids; moving the whole
    data set changes none.
    """
    text = path if member is None else f"{path}\x1f{member}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


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
    roots = (Path(os.path.abspath(folder)), folder.resolve())
    seen: set[str] = set()
    lines = []
    for record in records:
        if record.id in seen:
            raise ValueError(f"two images have the id {record.id}: {record.path} {record.member or ''}")
        seen.add(record.id)
        lines.append(_line(dataclasses.asdict(record) | {"path": _relative(record.path, roots)}))
    write_text(folder / MANIFEST, "".join(lines))
    write_text(folder / DROPPED, "".join(_line(dict(row)) for row in dropped))
    card.write(folder)


def read_manifest(folder: Path | str) -> Manifest:
    """Read the manifest that `folder` is, or that it keeps (features and captions do, in `manifest/`).

    Raises:
        UserError: not a complete manifest, or a damaged line in it (named).
    """
    folder = manifest_folder(folder) or Path(folder)
    records = tuple(stream_manifest(folder))
    label_names: Sequence[str] = Card.read(folder, "manifest").details.get("label_names") or ()
    return Manifest(folder, records, tuple(label_names))


def stream_manifest(folder: Path | str) -> Iterator[ImageRecord]:
    """The records of `read_manifest`, one at a time: for ten million of them.

    Raises:
        UserError: as `read_manifest`.
    """
    folder = manifest_folder(folder) or Path(folder)
    Card.read(folder, "manifest")
    for number, row in _rows(folder / MANIFEST):
        try:
            yield ImageRecord(**row)
        except TypeError as error:
            raise UserError(f"{folder / MANIFEST}:{number}: not an image record ({error})") from error


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


def _line(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8 arrives as lone surrogates; escaped, it survives the round trip.
        line = json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n"
    return line


def _relative(path: str, roots: Iterable[Path]) -> str:
    if path.startswith("hf:") or not Path(path).is_absolute():
        return path
    for root in roots:
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root).as_posix()
    return path
