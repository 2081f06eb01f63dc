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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixart_core.artifacts.card import CARD, Card
from pixart_core.artifacts.feature_index import read_index
from pixart_core.artifacts.feature_plan import KINDS, Bucket, FeaturePlan, PlannedShard
from pixart_core.artifacts.feature_reader import Buffers, CaptionReader, MomentReader, Shards
from pixart_core.errors import UserError


@dataclasses.dataclass
class FeatureBatch:
    """Samples of one bucket, ready to train on.

    Attributes:
        mean, std: unscaled moments of the VAE; draw `mean + std * noise`, then scale.
        text: token states of the captions, zero where `mask` is false; l is the longest caption here, 0 when
            captions were not asked for.
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
        planned: dict[Bucket, list[PlannedShard]] = {bucket: [] for bucket in self._rows}
        for shard in self._plan.shards("image"):
            if shard.bucket in planned:
                planned[shard.bucket].append(shard)
        buffers = Buffers()  # one for all buckets, of which training takes one after the other
        self._images = {
            bucket: MomentReader(Shards(self.folder, shards, index.entries), buffers)
            for bucket, shards in planned.items()
        }
        self._text = CaptionReader(Shards(self.folder, self._plan.shards("text"), index.entries))
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
        self,
        bucket: Bucket,
        indices: Sequence[int],
        flipped: Sequence[bool] | None = None,
        *,
        text: bool = True,
    ) -> FeatureBatch:
        """The samples number `indices` of `bucket`.

        Args:
            flipped: which of them shall be mirrored; only for a store with `flips`.
            text: whether to read captions; a class-conditional model does without.
        """
        if flipped is not None and any(flipped) and not self.flips:
            raise UserError(f"{self.folder} holds no mirror images; extract the features with flips")
        places = _checked(indices, self.buckets[bucket])
        rows = self._rows[bucket][places]
        mean, std = self._images[bucket].read(places, flipped or [False] * len(places))
        if text:
            states, mask = self._text.read(self._plan.column("caption", rows))
        else:
            states = torch.empty(len(rows), 0, self.caption_channels)
            mask = torch.empty(len(rows), 0, dtype=torch.bool)
        return FeatureBatch(
            mean=mean,
            std=std,
            text=states,
            mask=mask,
            labels=torch.from_numpy(self._plan.column("label", rows).astype(np.int64)),
            ids=self._plan.ids(rows),
            sizes=torch.from_numpy(self._plan.column("size", rows).astype(np.int64)),
        )

    def empty_caption(self) -> Float[Tensor, "l d"]:
        """The token states of "", which dropped captions become."""
        return self.text([0])[0]

    def caption_numbers(self, bucket: Bucket) -> np.ndarray:
        """The number of each sample's caption among the distinct captions of the store (0: the empty one)."""
        return self._plan.column("caption", self._rows[bucket])

    def text(self, numbers: Sequence[int]) -> list[Float[Tensor, "l d"]]:
        """The token states of captions by their numbers, without padding."""
        text, mask = self._text.read(_checked(numbers, self._plan.captions))
        return [states[:length].clone() for states, length in zip(text, mask.sum(1).tolist(), strict=True)]

    def _choose(self, resolution: int | None) -> int:
        if resolution is None and len(self.resolutions) == 1:
            return self.resolutions[0]
        names = ", ".join(map(str, self.resolutions))
        if resolution is None:
            raise UserError(f"{self.folder} holds several resolutions ({names}); choose one with resolution")
        if resolution not in self.resolutions:
            raise UserError(f"{self.folder} holds no resolution {resolution}, only {names}")
        return resolution


def _checked(indices: Sequence[int], count: int) -> np.ndarray:
    array = np.asarray(indices, dtype=np.int64)
    wrong = array[(array < 0) | (array >= count)]
    if len(wrong):
        raise IndexError(f"sample {wrong[0]} of {count}")
    return array


def _refuse_unfinished(folder: Path) -> None:
    """Raises:
    UserError: shards are not made yet; says how many."""
    if (folder / CARD).exists() or not (folder / "plan-00000.safetensors").exists():
        return
    plan, entries = FeaturePlan.load(folder), read_index(folder).entries
    parts = []
    for kind in KINDS:
        shards = plan.shards(kind)
        missing = sum(shard.name not in entries for shard in shards)
        if missing:
            parts.append(f"{missing} of {len(shards)} {kind} shards")
    raise UserError(
        f"{folder} is unfinished: {' and '.join(parts) or 'its card'} missing; "
        "run extract-features for the same data and output again"
    )
