"""The feature store: what the encoders made of images and captions, packed for training.

A folder with
- `text-00000.safetensors`, ...: tokens of the distinct captions, valid tokens only, end to end.
  Caption 0 of the store is the empty caption.
- `image-{h}x{w}-00000.safetensors`, ...: VAE moments of the images of one bucket (h x w pixels), their
  ids, labels, original sizes and the number of their caption.
- `index.jsonl`: first the fingerprint of what is being made, then one line a published shard.
- the card of kind "features", written last.

Values are int8 with a scale for 64 neighbours (`quantise`), or float16, or float32. A shard is either
whole (fsynced, renamed, then named in the index) or not there, so a killed extraction loses one shard.
The writer is in `feature_writer.py`.
"""

import dataclasses
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from torch import Tensor

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.quantise import dequantise
from pixart_core.errors import UserError

INDEX = "index.jsonl"
FORMAT = 1
Bucket = tuple[int, int]  # (height, width) in pixels


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
    """Reads a feature store by bucket and position; shards stay memory-mapped.

    The store may be far larger than memory, and may be read from several threads, forked or spawned
    processes.

    Attributes:
        buckets: (height, width) in pixels and its number of samples.
        details: the card's details, see `extract.py`.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open `folder`.

        Raises:
            UserError: no such folder, unfinished, no feature store, or a shard is gone or cut short.
        """
        self.folder = Path(folder)
        self.card = Card.read(self.folder, "features")
        self.details: Mapping[str, Any] = self.card.details
        images: dict[Bucket, list[dict[str, Any]]] = {}
        text: list[dict[str, Any]] = []
        for entry in read_index(self.folder)[1]:
            _check_file(self.folder / entry["name"], entry["bytes"])
            if entry["kind"] == "text":
                text.append(entry)
            else:
                images.setdefault(tuple(entry["bucket"]), []).append(entry)
        self._text = _Shards(self.folder, text)
        self._images = {bucket: _Shards(self.folder, images[bucket]) for bucket in sorted(images)}
        self.buckets: dict[Bucket, int] = {bucket: len(shards) for bucket, shards in self._images.items()}

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path]]:
        return FeatureStore, (self.folder,)

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
        return sum(self.buckets.values())

    def sample_ids(self, bucket: Bucket) -> list[str]:
        """The manifest ids of `bucket`, in the order that `batch` counts."""
        shards = self._images[bucket]
        return [_decode_id(row) for number in range(shards.count) for row in shards.open(number)["id"]]

    def unlabelled(self) -> int:
        """How many samples have no class."""
        shards = (images.open(number) for images in self._images.values() for number in range(images.count))
        return sum(int((shard["label"] < 0).sum()) for shard in shards)

    def batch(self, bucket: Bucket, indices: Sequence[int]) -> FeatureBatch:
        """The samples number `indices` of `bucket`."""
        places = self._images[bucket].locate(indices)
        latents = places[0][0]["mean"].shape[1:]
        mean = _gather(places, "mean").unflatten(1, latents)
        std = torch.zeros_like(mean)
        # The shards of a deterministic VAE have no std.
        noisy = [number for number, (shard, _) in enumerate(places) if "std" in shard]
        if noisy:
            std[noisy] = _gather([places[number] for number in noisy], "std").unflatten(1, latents)
        text, mask = self._captions([int(shard["caption"][row]) for shard, row in places])
        return FeatureBatch(
            mean=mean,
            std=std,
            text=text,
            mask=mask,
            labels=torch.tensor([int(shard["label"][row]) for shard, row in places]),
            ids=[_decode_id(shard["id"][row]) for shard, row in places],
            sizes=torch.from_numpy(np.stack([shard["size"][row] for shard, row in places]).astype(np.int64)),
        )

    def empty_caption(self) -> Float[Tensor, "l d"]:
        """The token states of "", which dropped captions become."""
        return self._captions([0])[0][0]

    def _captions(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        places = self._text.locate(numbers)
        spans = [(int(shard["offset"][row]), int(shard["offset"][row + 1])) for shard, row in places]
        lengths = [stop - start for start, stop in spans]
        columns = {}
        for name in ("token", "token_scale"):
            if name in places[0][0]:
                source = places[0][0][name]
                columns[name] = np.zeros((len(places), max(lengths), source.shape[1]), source.dtype)
                for row, ((shard, _), (start, stop)) in enumerate(zip(places, spans, strict=True)):
                    columns[name][row, : stop - start] = shard[name][start:stop]
        mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
        return _to_float(columns["token"], columns.get("token_scale")), torch.from_numpy(mask)


class _Shards:
    """Shards of one sort, seen as one long list of rows."""

    def __init__(self, folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
        self._paths = [folder / entry["name"] for entry in entries]
        self._starts = [0, *accumulate(int(entry["count"]) for entry in entries)]
        self._opened: dict[int, dict[str, np.ndarray]] = {}
        self.count = len(self._paths)

    def __len__(self) -> int:
        return self._starts[-1]

    def open(self, number: int) -> dict[str, np.ndarray]:
        """The memory-mapped arrays of a shard; bfloat16 is seen as uint16."""
        arrays = self._opened.get(number)
        if arrays is None:
            arrays = {}
            with safe_open(self._paths[number], framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                    tensor = file.get_tensor(name)
                    # numpy has no bfloat16
                    bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
                    arrays[name] = bits.numpy()
            self._opened[number] = arrays
        return arrays

    def locate(self, indices: Sequence[int]) -> list[tuple[dict[str, np.ndarray], int]]:
        """(shard, row in it) of each index."""
        places = []
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
            number = bisect_right(self._starts, index) - 1
            places.append((self.open(number), int(index) - self._starts[number]))
        return places


def _gather(places: Sequence[tuple[dict[str, np.ndarray], int]], name: str) -> Float[Tensor, "b n"]:
    scale = None
    if f"{name}_scale" in places[0][0]:
        scale = np.stack([shard[f"{name}_scale"][row] for shard, row in places])
    return _to_float(np.stack([shard[name][row].reshape(-1) for shard, row in places]), scale)


def _to_float(values: np.ndarray, scale: np.ndarray | None) -> Tensor:
    if scale is None:
        return torch.from_numpy(values).float()
    return dequantise(torch.from_numpy(values), torch.from_numpy(scale).view(torch.bfloat16))


def _decode_id(row: np.ndarray) -> str:
    return row.tobytes().rstrip(b"\0").decode()


def _check_file(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is gone; extract the features again to restore it") from error
    if found != size:
        raise UserError(f"{path} has {found} bytes instead of {size}; delete it and extract again")


def read_index(folder: Path) -> tuple[str | None, list[dict[str, Any]]]:
    """(fingerprint of what is made, entries of the published shards) of the index in `folder`.

    A last line that a kill cut short counts as not written; (None, []) without an index.

    Raises:
        UserError: the index is damaged, or of a newer format.
    """
    path = folder / INDEX
    try:
        lines = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return None, []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: damaged; delete {folder} and extract again") from error
    if not rows:
        return None, []
    if rows[0].get("format") != FORMAT:
        raise UserError(f"{path} is of format {rows[0].get('format')}, this pixart reads {FORMAT}")
    return str(rows[0]["plan"]), rows[1:]
