"""Writes the shards of a feature store, in any order and from several processes; see `features.py`.

A shard holds one row a sample (image) or token (text): the bytes of its values one after another, as
`layout` in the file's metadata says, so that a sample is read in one go. `xxh3` is the hash of the bytes of
each image or caption.

How the processes of one launch use it (`processes` of `launch.connect`):

    with only_launch(folder) if processes.first else nullcontext():
        if processes.first:
            plan = FeaturePlan.open(...); plan.extend(images)
            writer = FeatureWriter(folder, plan, storage, first=True)
        processes.wait()
        if not processes.first:
            plan = FeaturePlan.open(...); writer = FeatureWriter(folder, plan, storage)
        processes.wait()  # `missing` is what was missing when the writer was made: the same for all
        for shard in processes.share(writer.missing("image")): writer.write_images(...)
        processes.wait()
        if processes.first: writer.finish(card)
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from pixart_core.artifacts.card import CARD, Card
from pixart_core.artifacts.feature_files import write_columns
from pixart_core.artifacts.feature_index import append_entry, read_index, write_index
from pixart_core.artifacts.feature_packing import Packer, Storage, together
from pixart_core.artifacts.feature_plan import KINDS, FeaturePlan, Kind, PlannedShard
from pixart_core.artifacts.publish import sync_folder
from pixart_core.errors import PixartError

# (manifest ids, {"mean", "std"[, "mean_flipped", "std_flipped"]}: unscaled moments (b, c, h, w) of the VAE)
ImageBatch = tuple[Sequence[str], Mapping[str, Tensor]]
SIDES = (("mean", "std"), ("mean_flipped", "std_flipped"))

# diffusers clamps logvar at -30, std at 3e-7: where std is nowhere above this, the VAE has no noise.
_NO_NOISE = 1.0e-6


class FeatureWriter:
    """Publishes shards one by one; those that an earlier, killed run published are kept."""

    def __init__(
        self, folder: Path, plan: FeaturePlan, storage: Storage = "int8", *, first: bool = False
    ) -> None:
        """Open `folder` for writing what `plan` says.

        Args:
            first: this is the only process or the first, and no other has begun to write: clear what
                killed runs left.
        """
        self.folder = folder
        self.plan = plan
        self.storage = storage
        if first:
            self._clear()
        published = read_index(folder).entries
        self._missing: dict[Kind, list[PlannedShard]] = {
            kind: [shard for shard in plan.shards(kind) if not self._is_whole(published.get(shard.name))]
            for kind in KINDS
        }

    def missing(self, kind: Kind) -> list[PlannedShard]:
        """The shards that were not published when this writer was made, in the canonical order."""
        return self._missing[kind]

    def write_text(self, shard: PlannedShard, tokens: Iterable[Float[Tensor, "l d"]]) -> None:
        """Publish the token states of the captions `shard.rows`, in that order.

        They may come from a generator: only their packed bytes are held.
        """
        opened, count = self.open_text(shard), 0
        for some in together(tokens):
            opened.add(range(count, count + len(some)), some)
            count += len(some)
        opened.publish()

    def open_text(self, shard: PlannedShard) -> "OpenText":
        """Begin `shard`; its captions may come in any order."""
        return OpenText(self, shard)

    def write_images(self, shard: PlannedShard, batches: Iterable[ImageBatch]) -> None:
        """Publish the moments of the images `shard.rows`, in that order.

        Args:
            batches: ids and moments of some images at a time. They may come from a generator.
        """
        opened = self.open_images(shard)
        for names, moments in batches:
            opened.add(names, moments)
        opened.publish()

    def open_images(self, shard: PlannedShard) -> "OpenImages":
        """Begin `shard`; shards of several resolutions may be filled side by side, from one decoding."""
        return OpenImages(self, shard)

    def finish(self, card: Card) -> bool:
        """Bring the index into the canonical order and, if nothing is missing, write the card.

        Returns:
            Whether the store is complete; it is not while text or images are not made yet.
        """
        published = read_index(self.folder).entries
        names = self._names()
        entries = [published[name] for name in names if self._is_whole(published.get(name))]
        complete = len(entries) == len(names)
        if complete:
            content = card.text().encode()
            digest = xxhash.xxh3_128(content).hexdigest()
            entries.append({"kind": "card", "name": CARD, "bytes": len(content), "xxh3_128": digest})
        write_index(self.folder, self.plan.fingerprint, entries)
        if complete:
            card.write(self.folder)
            sync_folder(self.folder)
        return complete

    def errors(self) -> dict[str, float]:
        """Relative rms error of what is stored against what the encoders gave, for each kind of value."""
        published = read_index(self.folder).entries
        entries = [published[name] for name in self._names() if "error" in published.get(name, ())]
        result = {}
        for name in sorted({name for entry in entries for name in entry["error"]}):
            pairs = [(entry["error"][name], entry["count"]) for entry in entries if name in entry["error"]]
            square = sum(error**2 * count for error, count in pairs) / sum(count for _, count in pairs)
            result[name] = float(f"{math.sqrt(square):.4g}")
        return result

    def _clear(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob(".*.partial"):  # of a killed run
            partial.unlink()
        published = read_index(self.folder).entries
        whole = {name: published[name] for name in self._names() if self._is_whole(published.get(name))}
        if (self.folder / CARD).exists() and len(whole) == len(self._names()):
            return
        (self.folder / CARD).unlink(missing_ok=True)
        sync_folder(self.folder)
        # A kill may have come between a segment and its line; lines that it cut short are gone now.
        segments = {name: self.plan.segment_entry(name) for name in self.plan.segments}
        write_index(self.folder, self.plan.fingerprint, (segments | whole).values())

    def _names(self) -> list[str]:
        """What belongs into the index, in the canonical order."""
        shards = (shard for kind in KINDS for shard in self.plan.shards(kind))
        return [*self.plan.segments, *(shard.name for shard in shards)]

    def _is_whole(self, entry: Mapping[str, Any] | None) -> bool:
        if entry is None:
            return False
        path = self.folder / entry["name"]
        return path.is_file() and path.stat().st_size == entry["bytes"]

    def _publish(
        self,
        shard: PlannedShard,
        layout: Sequence[Mapping[str, Any]],
        errors: Mapping[str, float],
        columns: Mapping[str, np.ndarray],
    ) -> None:
        rows = columns["row"]
        edges = columns["offset"] if "offset" in columns else np.arange(len(rows) + 1)
        hashes = [
            xxhash.xxh3_64_intdigest(rows[start:stop].reshape(-1).data)
            for start, stop in itertools.pairwise(edges)
        ]
        metadata = {"kind": shard.kind, "layout": json.dumps(layout)}
        written = write_columns(
            self.folder / shard.name, {**columns, "xxh3": np.array(hashes, np.uint64)}, metadata
        )
        entry = {"kind": shard.kind, "name": shard.name, "count": len(shard.rows), "error": dict(errors)}
        if shard.bucket is not None:
            entry["bucket"] = list(shard.bucket)
        append_entry(self.folder, entry | dataclasses.asdict(written))


class OpenText:
    """A text shard that is being made: `add` its captions in any order, then `publish`."""

    def __init__(self, writer: FeatureWriter, shard: PlannedShard) -> None:
        self._writer = writer
        self._shard = shard
        self._packer = Packer(writer.storage)
        self._added: list[int] = []
        self._lengths: list[int] = []

    def add(self, numbers: Sequence[int], tokens: Sequence[Float[Tensor, "l d"]]) -> None:
        """Add the states of some captions; only their packed bytes are held.

        Args:
            numbers: which of `shard.rows` they are, from 0.
        """
        self._added += numbers
        self._lengths += map(len, tokens)
        for some in together(tokens):
            self._packer.add({"token": torch.cat(some) if len(some) > 1 else some[0]})

    def publish(self) -> None:
        """Write the shard and name it in the index.

        Raises:
            PixartError: captions are missing or have no token, or the disk is full.
        """
        count, added = len(self._shard.rows), np.array(self._added, np.int64)
        if not np.array_equal(np.sort(added), np.arange(count)) or min(self._lengths) < 1:
            whole = len({number for number, length in zip(added, self._lengths, strict=True) if length})
            raise PixartError(f"{self._shard.name}: {whole} captions with tokens instead of {count}")
        lengths = np.zeros(count, np.int64)
        lengths[added] = self._lengths
        offset = np.concatenate([[0], lengths.cumsum()])
        places = None
        if (added != np.arange(count)).any():
            places = np.concatenate([np.arange(offset[number], offset[number + 1]) for number in added])
        rows, layout = self._packer.rows(["token"], places)
        self._writer._publish(self._shard, layout, self._packer.errors(), {"row": rows, "offset": offset})


class OpenImages:
    """An image shard that is being made: `add` its images in the order of `shard.rows`, then `publish`."""

    def __init__(self, writer: FeatureWriter, shard: PlannedShard) -> None:
        self._writer = writer
        self._shard = shard
        self._packer = Packer(writer.storage)
        self._ids: list[str] = []
        self._noise = 0.0

    def add(self, ids: Sequence[str], moments: Mapping[str, Float[Tensor, "b c h w"]]) -> None:
        """Add some images; only their packed bytes are held."""
        self._ids.extend(ids)
        self._packer.add(moments)
        self._noise = max([self._noise, *(float(moments[std].max()) for _, std in SIDES if std in moments)])

    def publish(self) -> None:
        """Write the shard and name it in the index.

        Raises:
            PixartError: the disk is full.
        """
        plan, packer, name = self._writer.plan, self._packer, self._shard.name
        if self._ids != plan.ids(self._shard.rows):
            raise PixartError(f"{name}: these are not the images that were planned for it")
        sides = SIDES if plan.settings.get("flip") else SIDES[:1]
        stored = [kind for side in sides for kind in side]
        assert packer.shapes.keys() == set(stored), f"{name}: moments {', '.join(packer.shapes)}"
        if self._noise <= _NO_NOISE:
            stored = [kind for kind in stored if not kind.startswith("std")]
        rows, layout = packer.rows(stored)
        encoded = np.array([value.encode() for value in self._ids])
        columns = {"row": rows, "id": encoded.view(np.uint8).reshape(len(self._ids), -1)}
        self._writer._publish(self._shard, layout, packer.errors(stored), columns)
