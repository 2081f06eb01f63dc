"""Features outside a feature store: what exports and imports have in common.

An export is a folder with `export.json` (which store it is of; written first), the samples, the tokens of
the empty caption in `empty_caption.npy`, and last a card of kind "exported-features". Its details are those
of the store, with `format` ("webdataset" or "hf"), `tables` ({resolution: [[height, width], ...]} in pixels)
and `shard_size`.

A sample is one image at one resolution. WebDataset: `HxW-00000.tar`, ... with, for each key,

    KEY.json       {"id", "label" (null: none), "height", "width" (original, in pixels), "resolution",
                   "bucket": [height, width] in pixels, "caption" (number of the distinct caption),
                   "row" (of the image in the store)}
    KEY.mean.npy   (channels, h, w): mean of the VAE's latents, unscaled
    KEY.std.npy    (channels, h, w): their standard deviation
    KEY.text.npy   (tokens, width): states of the caption's valid tokens
    KEY.mean_flipped.npy, KEY.std_flipped.npy   of the mirrored picture, where the store has them

Hugging Face: a `datasets.Dataset` with the columns id, label, height, width, resolution, bucket_height,
bucket_width, caption, row; mean, std, text (and mean_flipped, std_flipped) as flat lists in C order, with
`latent_shape` (channels, h, w) and `text_shape` (tokens, width).

Numbers are float16 if the store's are, else float32: both give what training would read, bit by bit.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from pixart_core.encoders.array_files import UnusableFeatureError

EXPORT = "export.json"
EMPTY_CAPTION = "empty_caption.npy"
KIND = "exported-features"
MOMENTS = ("mean", "std")
FLIPPED = ("mean_flipped", "std_flipped")


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What is known of a sample without its numbers.

    Attributes:
        id: of the manifest, or whatever names the image in foreign data.
        caption: the caption, or a text that stands for it: equal ones have the same tokens. "" is the empty
            caption.
        label: class of stage 1, None for none.
        height, width: original size in pixels; None where the data do not tell.
        resolution: in pixels; None where the data do not tell.
        row: its place in the order of the images; None: as it comes.
        latents: (channels, height, width).
        text: (tokens, width).
    """

    id: str
    caption: str
    label: int | None
    height: int | None
    width: int | None
    resolution: int | None
    row: int | None
    latents: tuple[int, int, int]
    text: tuple[int, int]

    @classmethod
    def read(cls, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """From what a sample's JSON says and its arrays.

        Raises:
            UnusableFeatureError: they do not fit together.
        """
        mean, text = arrays["mean"], arrays["text"]
        if mean.ndim != 3 or 0 in mean.shape:
            raise UnusableFeatureError(f"mean has the shape {mean.shape}, not (channels, height, width)")
        for name, value in arrays.items():
            if name != "text" and value.shape != mean.shape:
                raise UnusableFeatureError(f"{name} has the shape {value.shape}, mean {mean.shape}")
        if text.ndim != 2 or 0 in text.shape:
            raise UnusableFeatureError(f"text has the shape {text.shape}, not (valid tokens, width)")
        if not isinstance(told.get("id"), str) or not told["id"]:
            raise UnusableFeatureError("has no id")
        numbers = {name: _whole(told, name) for name in ("label", "height", "width", "resolution", "row")}
        return cls(
            id=told["id"],
            caption=_caption_key(told.get("caption"), text),
            latents=mean.shape,
            text=text.shape,
            **numbers,
        )


def _whole(told: Mapping[str, Any], name: str) -> int | None:
    value = told.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise UnusableFeatureError(f"{name} is {value!r}, not a whole number")
    return value


def _caption_key(caption: Any, tokens: np.ndarray) -> str:
    if isinstance(caption, str):
        return caption.strip()
    if isinstance(caption, int) and not isinstance(caption, bool):
        return f"caption {caption}" if caption else ""
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).hexdigest()


class FeatureSource(Protocol):
    """Data that hold features, whatever their format.

    Attributes:
        kind: of the format, for cards.
        known: details of the store that they were exported from; empty for foreign data.
        flips: whether samples have the moments of mirrored pictures.
        notes: what the user should know, one sentence each.
    """

    kind: str
    known: Mapping[str, Any]
    flips: bool
    notes: Sequence[str]

    def __len__(self) -> int: ...

    def place(self, index: int) -> str:
        """Where sample `index` lies, for messages."""

    def check(self, index: int) -> Sample:
        """Read all of sample `index`.

        Raises:
            UnusableFeatureError: something of it is missing or damaged.
        """

    def moments(self, index: int) -> dict[str, np.ndarray]:
        """Mean, std (and the flipped ones), each (channels, h, w)."""

    def tokens(self, index: int) -> np.ndarray:
        """(tokens, width) of the caption."""

    def empty_caption(self) -> np.ndarray | None:
        """(tokens, width) of "", None where the data have it not."""


def moment_names(flips: bool) -> Sequence[str]:
    """The kinds of moments that a sample has."""
    return (*MOMENTS, *FLIPPED) if flips else MOMENTS
