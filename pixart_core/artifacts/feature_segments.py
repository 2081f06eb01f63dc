"""The files of a feature store's plan: `plan-00000.safetensors`, one for each time that data was added.

Columns, a row an image: `id`, `label` (-1: none), `size` (original height, width in pixels), `caption`
(number of a distinct caption in the whole store; 0 is the empty one), `bucket` (place in the table of each
resolution), `content` (digest of the encoded image, 0 where it is unknown); and `digest`, 16 bytes of blake2b
for each distinct caption that the segment adds.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pixart_core.artifacts.feature_files import REPAIR, MappedFile, map_columns
from pixart_core.artifacts.image_records import digest_number
from pixart_core.errors import UserError

Bucket = tuple[int, int]  # (height, width) in pixels
Columns = dict[str, np.ndarray]
_CHUNK = 65536  # images that are Python objects at a time


@dataclasses.dataclass(frozen=True)
class PlannedImage:
    """An image that the store shall hold.

    Attributes:
        id: manifest id.
        caption: text to encode, as it is.
        label: class of stage 1, None where there is none.
        height, width: original size in pixels.
        buckets: its bucket at each resolution, in the order of the plan's tables.
        digest: `ImageRecord.digest`, None where it is unknown.
    """

    id: str
    caption: str
    label: int | None
    height: int
    width: int
    buckets: tuple[Bucket, ...]
    digest: str | None = None


class Segments:
    """The segments of a plan, seen as long columns; they stay memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[MappedFile] = []
        while (folder / self.next_name).exists():
            self.files.append(_with_content(map_columns(folder / self.next_name)))

    @property
    def names(self) -> list[str]:
        return [f"plan-{number:05d}.safetensors" for number in range(len(self.files))]

    @property
    def next_name(self) -> str:
        return f"plan-{len(self.files):05d}.safetensors"

    def starts(self, name: str) -> list[int]:
        """The first row of each segment in the long column `name`, and behind them its length."""
        ends = np.cumsum([len(file.columns[name]) for file in self.files], dtype=np.int64)
        return [0, *ends.tolist()]

    def whole(self, name: str) -> np.ndarray:
        """The long column `name`."""
        parts = [file.columns[name] for file in self.files]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def at(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The long column `name` at `rows`."""
        if len(self.files) == 1:
            return np.asarray(self.files[0].columns[name][rows])
        parts = [file.columns[name] for file in self.files]
        found = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
        starts = self.starts(name)
        place = np.searchsorted(starts, rows, "right") - 1
        for number in np.unique(place):
            here = place == number
            found[here] = parts[number][rows[here] - starts[number]]
        return found

    def differing(self, name: str, rows: np.ndarray, now: np.ndarray) -> np.ndarray:
        """For each of `rows`, whether the long column `name` says something else than `now`."""
        before = self.at(name, rows)
        differs = before != now
        if name == "content":
            differs &= (before != 0) & (now != 0)
        return differs.reshape(len(differs), -1).any(1) if differs.size else differs

    def ids(self, rows: np.ndarray) -> list[str]:
        """Manifest ids of `rows`."""
        if len(self.files) == 1:
            return [name.decode() for name in _id_strings(self.files[0].columns["id"][rows]).tolist()]
        starts = self.starts("id")
        place = np.searchsorted(starts, rows, "right") - 1
        names = np.empty(len(rows), object)
        for number in np.unique(place):
            here = place == number
            column = self.files[number].columns["id"]
            names[here] = _id_strings(column[rows[here] - starts[number]]).tolist()
        return [name.decode() for name in names]

    def all_ids(self) -> np.ndarray:
        """Manifest ids of all rows, as numpy's bytes."""
        return np.concatenate([_id_strings(file.columns["id"]) for file in self.files])

    def entry(self, name: str) -> dict[str, Any]:
        """The index line of a segment."""
        file = self.files[self.names.index(name)]
        return {
            "kind": "plan",
            "name": name,
            "count": len(file.columns["id"]),
            "bytes": len(file.memory),
            "xxh3_128": xxhash.xxh3_128(file.memory).hexdigest(),
        }


def _with_content(file: MappedFile) -> MappedFile:
    """Segments of before images had digests lack that column."""
    unknown = np.broadcast_to(np.uint64(0), len(file.columns["id"]))
    return dataclasses.replace(file, columns={"content": unknown, **file.columns})


def stored_settings(path: Path, segment: MappedFile) -> dict[str, Any]:
    """The settings that a segment was planned with.

    Raises:
        UserError: they are damaged.
    """
    try:
        return dict(json.loads(segment.metadata["settings"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged (its settings: {error}); {REPAIR}") from error


def caption_digest(caption: str) -> bytes:
    """16 bytes by which equal captions are known."""
    return hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def caption_digests(captions: Iterable[str]) -> np.ndarray:
    """(n,) of S16, which numpy sorts and compares as they are."""
    return np.frombuffer(b"".join(map(caption_digest, captions)), "S16")


def id_bytes(ids: np.ndarray) -> np.ndarray:
    """(n,) of numpy's bytes -> (n, width) of uint8, filled up with zeros."""
    return np.ascontiguousarray(ids).view(np.uint8).reshape(len(ids), ids.itemsize)


def _id_strings(column: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(column).view(f"S{column.shape[1]}").reshape(len(column))


def image_columns(images: Iterable[PlannedImage], tables: Iterable[Sequence[Bucket]]) -> Columns:
    """Columns of `images`: those of a segment with `id` as bytes and each caption's digest.

    Raises:
        UserError: an image is there twice.
    """
    places = [{tuple(bucket): place for place, bucket in enumerate(table)} for table in tables]
    chunks: dict[str, list[np.ndarray]] = {
        "id": [np.empty(0, "S1")],
        "label": [np.empty(0, np.int32)],
        "size": [np.empty((0, 2), np.int32)],
        "bucket": [np.empty((0, len(places)), np.int16)],
        "content": [np.empty(0, np.uint64)],
        "digest": [np.empty(0, "S16")],
    }
    iterator = iter(images)
    while chunk := list(islice(iterator, _CHUNK)):
        labels = [-1 if image.label is None else image.label for image in chunk]
        buckets = [[at[bucket] for at, bucket in zip(places, image.buckets, strict=True)] for image in chunk]
        chunks["id"].append(np.array([image.id.encode() for image in chunk]))
        chunks["label"].append(np.array(labels, np.int32))
        chunks["size"].append(np.array([(image.height, image.width) for image in chunk], np.int32))
        chunks["bucket"].append(np.array(buckets, np.int16))
        chunks["content"].append(np.array([digest_number(image.digest) for image in chunk], np.uint64))
        chunks["digest"].append(caption_digests(image.caption for image in chunk))
    found = {name: np.concatenate(parts) for name, parts in chunks.items()}
    ids = np.sort(found["id"])
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice):
        raise UserError(f"two images have the id {ids[twice[0]].decode()}")
    return found


def number_captions(known: np.ndarray, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of each image's caption, those digests that are new, in the order of their numbers).

    Known captions keep their numbers; new ones follow in the order of their first use.
    """
    everything = np.concatenate([known, digests])
    _, first, inverse = np.unique(everything, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(first), np.int64)
    number[order] = np.arange(len(first))
    return number[inverse[len(known) :]], everything[first[order[len(known) :]]]


def planned_rows(planned: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row in `planned` of each of `ids`, -1 for new ones; those of `planned` that `ids` lacks)."""
    rows = np.full(len(ids), -1, np.int64)
    if not len(planned) or not len(ids):
        return rows, planned
    order = np.argsort(ids, kind="stable")
    place = np.minimum(np.searchsorted(ids[order], planned), len(ids) - 1)
    there = ids[order[place]] == planned
    rows[order[place[there]]] = np.flatnonzero(there)
    return rows, planned[~there]


def digest_strings(column: np.ndarray) -> np.ndarray:
    """(n, 16) of uint8 -> (n,) of S16."""
    return np.ascontiguousarray(column).reshape(-1).view("S16")


def first_rows(captions: np.ndarray) -> np.ndarray:
    """For each caption number the first row that has it; -1 for an empty caption that no image has."""
    numbers, rows = np.unique(captions, return_index=True)
    unused = not len(numbers) or numbers[0] != 0
    return np.concatenate([[-1], rows]) if unused else rows
