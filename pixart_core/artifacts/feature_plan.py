"""What a feature store will hold, fixed before anything is encoded (files: `feature_segments.py`).

The rows of the plan decide which shards there are and what is in each, so it does not matter which process
makes them, in which order, or how often it was killed in between. Data that is added later becomes a
segment with shards of its own: those that are there are never written again.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from pixart_core.artifacts.card import CARD, fingerprint
from pixart_core.artifacts.feature_files import REPAIR, map_columns, write_columns
from pixart_core.artifacts.feature_index import append_entry, read_index, write_index
from pixart_core.artifacts.feature_segments import (
    Bucket,
    Columns,
    PlannedImage,
    Segments,
    caption_digests,
    digest_strings,
    first_rows,
    id_bytes,
    image_columns,
    number_captions,
    planned_rows,
    stored_settings,
)
from pixart_core.artifacts.publish import sync_folder
from pixart_core.errors import UserError

Kind = Literal["text", "image"]
KINDS: tuple[Kind, ...] = ("text", "image")


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedShard:
    """A file to make.

    Attributes:
        kind: "text" or "image".
        bucket: of an image shard; None for text.
        rows: numbers of the distinct captions, or rows of the plan (images), in the order of the file.
    """

    kind: Kind
    name: str
    bucket: Bucket | None
    rows: Sequence[int] | np.ndarray


class FeaturePlan:
    """The images and captions of a store.

    Attributes:
        settings: what decides the stored numbers, `tables` and `shard_size` among it.
        tables: the buckets of each resolution.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """`open` or `load` makes one."""
        self.folder = folder
        self.settings = settings
        self.tables: dict[int, tuple[Bucket, ...]] = {
            int(resolution): tuple((int(height), int(width)) for height, width in table)
            for resolution, table in settings["tables"]
        }
        self.shard_size = int(settings["shard_size"])
        self._segments = Segments(folder)

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        tables: Mapping[int, Sequence[Bucket]],
        shard_size: int,
    ) -> Self:
        """The plan of `folder`, empty if there is none yet. Nothing is written.

        Args:
            settings: what else decides the stored numbers, as JSON: dtype, storage, max_tokens, flip, ...
            tables: {resolution: its buckets (height, width) in pixels}.

        Raises:
            UserError: `folder` holds something else or features made with other settings (named), or a
                bucket is in two tables.
        """
        twice = [size for size, count in Counter(map(tuple, chain(*tables.values()))).items() if count > 1]
        if twice:
            raise UserError(f"bucket {twice[0][0]}x{twice[0][1]} is given twice, or for two resolutions")
        if not read_index(folder).entries and (folder / CARD).exists():  # refuses other formats too
            raise UserError(f"{folder} holds something else; choose another output")
        everything = dict(settings) | {
            "tables": [[resolution, [list(size) for size in table]] for resolution, table in tables.items()],
            "shard_size": shard_size,
        }
        plan = cls(folder, json.loads(json.dumps(everything)))
        plan._refuse_other_settings()
        return plan

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The plan of a store that is there.

        Raises:
            UserError: there is none, or it is damaged.
        """
        first = folder / "plan-00000.safetensors"
        try:
            return cls(folder, stored_settings(first, map_columns(first)))
        except (KeyError, TypeError) as error:
            raise UserError(f"{first} is damaged (its settings: {error}); {REPAIR}") from error

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the settings."""
        return fingerprint(self.settings)

    @property
    def count(self) -> int:
        """Number of images."""
        return self._segments.starts("id")[-1]

    @property
    def captions(self) -> int:
        """Number of distinct captions, the empty one among them."""
        return self._segments.starts("digest")[-1]

    @property
    def segments(self) -> list[str]:
        """Names of the files that hold the plan."""
        return self._segments.names

    def segment_entry(self, name: str) -> dict[str, Any]:
        """The index line of one."""
        return self._segments.entry(name)

    def column(self, name: Literal["label", "size", "caption", "bucket"], rows: np.ndarray) -> np.ndarray:
        """What the plan says about `rows`."""
        return self._segments.at(name, rows)

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Manifest ids of `rows`."""
        return self._segments.ids(np.asarray(rows, np.int64))

    def caption_numbers(self, captions: Iterable[str]) -> np.ndarray:
        """The number of each of `captions`.

        Raises:
            UserError: one was not planned.
        """
        known, wanted = digest_strings(self._segments.whole("digest")), caption_digests(captions)
        order = np.argsort(known)
        numbers = order[np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)]
        lost = int((known[numbers] != wanted).sum())
        if lost:
            raise UserError(f"{lost} captions are not those that {self.folder} was planned with")
        return np.asarray(numbers)

    def first_uses(self, captions: Sequence[int] | np.ndarray) -> np.ndarray:
        """The first row that has each of these captions; -1 for an empty caption that no image has."""
        return first_rows(self._segments.whole("caption"))[np.asarray(captions)]

    def counts(self) -> dict[Bucket, int]:
        """Images of each bucket, of all resolutions."""
        return dict(sorted((b, len(rows)) for r in self.tables for b, rows in self.bucket_rows(r).items()))

    def bucket_rows(self, resolution: int) -> dict[Bucket, np.ndarray]:
        """The rows of each bucket of `resolution`, in the order of its samples; none is empty."""
        groups: dict[Bucket, list[np.ndarray]] = {}
        for bucket, rows in self._grouped(resolution):
            groups.setdefault(bucket, []).append(rows)
        dtype = np.int32 if self.count < 2**31 else np.int64  # held by every reader
        return {
            bucket: np.concatenate(groups[bucket], dtype=dtype, casting="unsafe") for bucket in sorted(groups)
        }

    def shards(self, kind: Kind) -> list[PlannedShard]:
        """The shards to make, in the canonical order: text by number, images by bucket and number."""
        return list(self._text_shards() if kind == "text" else self._image_shards())

    def extend(self, images: Iterable[PlannedImage]) -> int:
        """Add those of `images` that are new, as one segment; call it with all images of the data.

        What was planned before stays. A store that gets new images is unfinished again: its card goes.

        Returns:
            How many were new.

        Raises:
            UserError: an image is there twice, or one that was planned has changed or is gone.
            PixartError: the disk is full; the plan is as it was.
        """
        found = image_columns(images, self.tables.values())
        known = digest_strings(self._segments.whole("digest")) if self.segments else caption_digests([""])
        found["caption"], digests = number_captions(known, found.pop("digest"))
        new = self._refuse_changes(found)
        if self.segments and not new.any():
            return 0
        columns = {name: value[new] for name, value in found.items()}
        columns["id"] = id_bytes(columns["id"])
        # The first segment brings the empty caption as number 0.
        digests = digests if self.segments else np.concatenate([known, digests])
        columns["digest"] = digests.view(np.uint8).reshape(-1, 16)
        self._append(columns)
        return int(new.sum())

    def _append(self, columns: Columns) -> None:
        name, index = self._segments.next_name, read_index(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / CARD).unlink(missing_ok=True)
        sync_folder(self.folder)
        if index.plan is None:
            write_index(self.folder, self.fingerprint, index.entries.values())
        metadata = {"kind": "plan", "settings": json.dumps(self.settings, sort_keys=True)}
        written = write_columns(self.folder / name, columns, metadata)
        if name in index.entries and index.entries[name]["xxh3_128"] != written.xxh3_128:
            (self.folder / name).unlink()
            lost = f"{self.folder / name} was lost, and the data no longer gives the same plan"
            raise UserError(f"{lost}; choose another output, or delete this one and extract again")
        self._segments = Segments(self.folder)
        append_entry(self.folder, self.segment_entry(name))

    def _refuse_changes(self, found: Columns) -> np.ndarray:
        """Which of the images are new."""
        if not self.segments:
            return np.ones(len(found["id"]), bool)
        planned, gone = planned_rows(self._segments.all_ids(), found["id"])
        if len(gone):
            raise UserError(
                f"{len(gone)} of {self.count} images that {self.folder} was planned with are gone from the "
                f"data, e.g. {gone[0].decode()}; restore them or choose another output"
            )
        old = planned >= 0
        for name in ("caption", "label", "size", "bucket", "content"):
            differs = self._segments.differing(name, planned[old], found[name][old])
            if differs.any():
                example = found["id"][old][differs][0].decode()
                raise UserError(
                    f"{int(differs.sum())} of the images in {self.folder} have another {name} now, e.g. "
                    f"{example}; choose another output or restore the data"
                )
        return ~old

    def _refuse_other_settings(self) -> None:
        for name, file in zip(self.segments, self._segments.files, strict=True):
            there = stored_settings(self.folder / name, file)
            names = there.keys() | self.settings.keys()
            differing = sorted(key for key in names if there.get(key) != self.settings.get(key))
            if differing:
                now = self.settings
                told = [f"{key}: {_short(there.get(key))}, now {_short(now.get(key))}" for key in differing]
                raise UserError(
                    f"{self.folder} holds features made with other settings ({'; '.join(told)}); "
                    "choose another output or restore them"
                )

    def _text_shards(self) -> Iterator[PlannedShard]:
        number = 0
        for first, last in pairwise(self._segments.starts("digest")):
            for start in range(first, last, self.shard_size):
                rows = range(start, min(start + self.shard_size, last))
                yield PlannedShard("text", f"text-{number:05d}.safetensors", None, rows)
                number += 1

    def _image_shards(self) -> Iterator[PlannedShard]:
        parts: dict[Bucket, list[np.ndarray]] = {}
        for resolution in self.tables:
            for bucket, rows in self._grouped(resolution):
                starts = range(0, len(rows), self.shard_size)
                parts.setdefault(bucket, []).extend(rows[at : at + self.shard_size] for at in starts)
        for bucket in sorted(parts):
            for number, rows in enumerate(parts[bucket]):
                name = f"image-{bucket[0]}x{bucket[1]}-{number:05d}.safetensors"
                yield PlannedShard("image", name, bucket, rows)

    def _grouped(self, resolution: int) -> Iterator[tuple[Bucket, np.ndarray]]:
        """(bucket, rows in it) of each segment; none is empty."""
        place, table = list(self.tables).index(resolution), self.tables[resolution]
        starts = self._segments.starts("id")
        for start, file in zip(starts, self._segments.files, strict=False):
            column = file.columns["bucket"][:, place]
            order = np.argsort(column, kind="stable")
            ends = np.searchsorted(column[order], np.arange(len(table) + 1))
            for bucket, (first, last) in zip(table, pairwise(ends), strict=True):
                if last > first:
                    yield bucket, start + order[first:last]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."
