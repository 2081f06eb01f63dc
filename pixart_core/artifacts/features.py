"""The feature store: what the encoders made of images and captions, packed for training.

A folder with
- `plan-00000.safetensors`, ...: which images and captions it holds (`feature_plan.py`).
- `text-00000.safetensors`, ...: tokens of the distinct captions, valid tokens only, end to end, once for
  all resolutions. Caption 0 of the store is the empty caption.
- `image-{h}x{w}-00000.safetensors`, ...: VAE moments of the images of one bucket (h x w pixels), and of
  their mirror images if the store has flips.
- `index.jsonl`: sizes and hashes of these files (`feature_index.py`).
- the card of kind "features", written last.

Values are int8 with a scale for 64 neighbours (`quantise`), or float16, or float32. A shard is either
whole (fsynced, renamed, then named in the index) or not there, so a killed extraction loses one shard for
each process. The writer is in `feature_writer.py`, `feature_check.py` finds damage.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixart_core.artifacts.card import CARD, Card
from pixart_core.artifacts.feature_files import REPAIR, MappedFile, map_columns
from pixart_core.artifacts.feature_index import read_index
from pixart_core.artifacts.feature_plan import Bucket, FeaturePlan, PlannedShard
from pixart_core.artifacts.quantise import dequantise
from pixart_core.errors import UserError


@dataclasses.dataclass
class FeatureBatch:
    """Samples of one bucket, ready to train on.

    Attributes:
        mean, std: unscaled moments of the VAE; draw `mean + std * noise`, then scale.
        text: token states of the captions, zero where `mask` is false; l is the longest caption here.
        mask: which tokens are valid; at least one a sample.
        labels: class of stage 1, -1 where the data has none.
        ids: manifest ids.
        sizes: original (height, width) of the images in pixels, before resizing and cropping.
    """

    mean: Float[Tensor, "b c h w"]
    std: Float[Tensor, "b c h w"]
    text: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    labels: Int[Tensor, " b"]
    ids: list[str]
    sizes: Int[Tensor, "b 2"]


class FeatureStore:
    """Reads a feature store by bucket and position; shards are memory-mapped.

    The store may be far larger than memory, and may be read from several threads, forked or spawned
    processes.

    Attributes:
        resolution: the one that is read, of `resolutions`.
        buckets: (height, width) in pixels and its number of samples, at this resolution.
        flips: whether mirror images are there.
        details: the card's details, see `extract.py`.
    """

    def __init__(self, folder: Path | str, resolution: int | None = None) -> None:
        """Open `folder` at one of its resolutions (which may be left out if there is only one).

        Raises:
            UserError: no such folder or resolution, unfinished, no feature store, or a shard is gone or
                cut short.
        """
        self.folder = Path(folder)
        index = read_index(self.folder)
        _refuse_unfinished(self.folder)
        self.card = Card.read(self.folder, "features")
        self.details: Mapping[str, Any] = self.card.details
        self._plan = FeaturePlan.load(self.folder)
        self.resolutions = tuple(self._plan.tables)
        self.resolution = self._choose(resolution)
        self._rows = self._plan.bucket_rows(self.resolution)
        images: dict[Bucket, list[PlannedShard]] = {bucket: [] for bucket in self._rows}
        for shard in self._plan.shards("image"):
            if shard.bucket in images:
                images[shard.bucket].append(shard)
        self._images = {
            bucket: _Shards(self.folder, shards, index.entries) for bucket, shards in images.items()
        }
        self._text = _Shards(self.folder, self._plan.shards("text"), index.entries)
        self.buckets: dict[Bucket, int] = {bucket: len(rows) for bucket, rows in self._rows.items()}
        self.flips = bool(self._plan.settings.get("flip"))

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path, int]]:
        return FeatureStore, (self.folder, self.resolution)

    @property
    def latent_channels(self) -> int:
        return int(self.details["latent_channels"])

    @property
    def caption_channels(self) -> int:
        return int(self.details["caption_channels"])

    @property
    def max_tokens(self) -> int:
        return int(self.details["max_tokens"])

    @property
    def scaling_factor(self) -> float:
        return float(self.details["vae"]["scaling_factor"])

    @property
    def shift_factor(self) -> float:
        """What is subtracted from latents before scaling (0 for most VAEs)."""
        return float(self.details["vae"]["shift_factor"])

    @property
    def vae_downsampling(self) -> int:
        """Pixels per latent pixel, along a side."""
        return int(self.details["vae"]["downsampling"])

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.details["label_names"])

    def __len__(self) -> int:
        return self._plan.count

    def sample_ids(self, bucket: Bucket) -> list[str]:
        """The manifest ids of `bucket`, in the order that `batch` counts."""
        return self._plan.ids(self._rows[bucket])

    def unlabelled(self) -> int:
        """How many samples have no class."""
        return sum(int((self._plan.column("label", rows) < 0).sum()) for rows in self._rows.values())

    def batch(
        self, bucket: Bucket, indices: Sequence[int], flipped: Sequence[bool] | None = None
    ) -> FeatureBatch:
        """The samples number `indices` of `bucket`.

        Args:
            flipped: which of them shall be mirrored; only for a store with `flips`.
        """
        rows = self._rows[bucket][_checked(indices, self.buckets[bucket])]
        mean, std = self._moments(bucket, indices, flipped)
        text, mask = self._captions(self._plan.column("caption", rows))
        return FeatureBatch(
            mean=mean,
            std=std,
            text=text,
            mask=mask,
            labels=torch.from_numpy(self._plan.column("label", rows).astype(np.int64)),
            ids=self._plan.ids(rows),
            sizes=torch.from_numpy(self._plan.column("size", rows).astype(np.int64)),
        )

    def empty_caption(self) -> Float[Tensor, "l d"]:
        """The token states of "", which dropped captions become."""
        return self._captions(np.array([0]))[0][0]

    def _choose(self, resolution: int | None) -> int:
        if resolution is None and len(self.resolutions) == 1:
            return self.resolutions[0]
        names = ", ".join(map(str, self.resolutions))
        if resolution is None:
            raise UserError(f"{self.folder} holds several resolutions ({names}); choose one: resolution")
        if resolution not in self.resolutions:
            raise UserError(f"{self.folder} holds no resolution {resolution}, only {names}")
        return resolution

    def _moments(
        self, bucket: Bucket, indices: Sequence[int], flipped: Sequence[bool] | None
    ) -> tuple[Tensor, Tensor]:
        if flipped is not None and any(flipped) and not self.flips:
            raise UserError(f"{self.folder} holds no mirror images; extract the features with flips")
        sides = [False] * len(indices) if flipped is None else flipped
        values = []
        for index, mirror in zip(indices, sides, strict=True):
            shard, row = self._images[bucket].locate(int(index))
            ending = "_flipped" if mirror else ""
            raw = shard.file.columns["row"][row : row + 1]
            mean = shard.values(raw, f"mean{ending}")
            std = (
                shard.values(raw, f"std{ending}")
                if f"std{ending}" in shard.layout
                else torch.zeros_like(mean)
            )
            values.append((mean, std))
        return torch.cat([mean for mean, _ in values]), torch.cat([std for _, std in values])

    def _captions(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        values = []
        for number in numbers.tolist():
            shard, row = self._text.locate(number)
            offset = shard.file.columns["offset"]
            values.append(shard.values(shard.file.columns["row"][offset[row] : offset[row + 1]], "token"))
        lengths = torch.tensor([len(states) for states in values])
        text = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        return text, torch.arange(text.shape[1]) < lengths[:, None]


class _Shard:
    """One mapped shard and what lies where in its rows."""

    def __init__(self, path: Path) -> None:
        self.file: MappedFile = map_columns(path)
        self.layout = {entry["name"]: entry for entry in json.loads(self.file.metadata["layout"])}

    def values(self, rows: np.ndarray, name: str) -> Tensor:
        """(n, ...) in float32 of rows (n, bytes)."""
        stored = self._stored(rows, name)
        if f"{name}_scale" in self.layout:
            stored = dequantise(stored, self._stored(rows, f"{name}_scale"))
        return stored.float().unflatten(1, self.layout[name]["shape"])

    def _stored(self, rows: np.ndarray, name: str) -> Tensor:
        entry = self.layout[name]
        part = rows[:, entry["start"] : entry["start"] + entry["bytes"]]
        return torch.from_numpy(part.copy()).view(_DTYPES[entry["dtype"]])


_DTYPES = {"I8": torch.int8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class _Shards:
    """Shards of one sort, seen as one long list of rows."""

    def __init__(
        self, folder: Path, shards: Sequence[PlannedShard], entries: Mapping[str, Mapping[str, Any]]
    ) -> None:
        for shard in shards:
            if shard.name not in entries:
                raise UserError(f"{folder / shard.name} is not in the index of the store; {REPAIR}")
            _check_file(folder / shard.name, entries[shard.name]["bytes"])
        self._paths = [folder / shard.name for shard in shards]
        self._starts = np.array([0, *accumulate(len(shard.rows) for shard in shards)])
        self._opened: dict[int, _Shard] = {}

    def locate(self, index: int) -> tuple[_Shard, int]:
        """(shard, row in it)."""
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        shard = self._opened.get(number)
        if shard is None:
            shard = self._opened[number] = _Shard(self._paths[number])
        return shard, index - int(self._starts[number])


def _checked(indices: Sequence[int], count: int) -> np.ndarray:
    array = np.asarray(indices, dtype=np.int64)
    wrong = array[(array < 0) | (array >= count)]
    if len(wrong):
        raise IndexError(f"sample {wrong[0]} of {count}")
    return array


def _refuse_unfinished(folder: Path) -> None:
    """Raises:
    UserError: shards are not made yet; says of what."""
    if (folder / CARD).exists() or not (folder / "plan-00000.safetensors").exists():
        return
    plan, entries = FeaturePlan.load(folder), read_index(folder).entries
    missing = [kind for kind in ("text", "image") if any(s.name not in entries for s in plan.shards(kind))]
    if len(missing) == 1:
        raise UserError(
            f"{folder} is unfinished: its {missing[0]} features are missing; "
            "run extract-features for the same data and output again"
        )


def _check_file(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is gone; extract the features again to restore it") from error
    if found != size:
        raise UserError(
            f"{path} has {found} bytes instead of {size}; extract the features again to restore it"
        )
