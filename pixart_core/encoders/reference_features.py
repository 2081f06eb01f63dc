"""Features in the layout of the released PixArt code: a list of images and one file each of them.

    partition/*.json        [{"path", "prompt", "height", "width", "ratio"}, ...] (or *.txt: a path a line)
    img_vae_*/noflip/*.npy  (2c, h, w): mean and standard deviation of the latents, one after the other
    caption_feature*/*.npz  caption_feature (1, 120, width), attention_mask (1, 120); all valid without one

Its writer names the file of `a/b/c.png` `a/b_c.npy`; earlier versions wrote `c.npy`, and its SAM reader looks
for `a/b/c.npy`. All are found here; two images that would share a file are refused instead of mixed up.
"""

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pixart_core.artifacts.manifest import image_id
from pixart_core.encoders.array_files import UnusableFeatureError, parse_npy, parse_npz, read_file
from pixart_core.encoders.feature_exchange import Sample
from pixart_core.errors import UserError

_MOST_RATIO = 4  # the released data sets leave out what is longer
_IMAGE_FOLDERS = ("img_vae_*/noflip", "img_vae_*/ms", "img_vae_*/*/noflip", "img_vae_*/*/ms", "img_vae_*")
_TEXT_FOLDERS = ("caption_feature_wmask", "caption_features_wmask", "caption_features", "caption_feature")
_LISTS = ("partition/*.json", "*.json", "partition/*.txt", "*.txt")


class ReferenceSource:
    """A `FeatureSource` of a folder in the layout of the released code."""

    kind = "pixart"
    flips = False
    known: Mapping[str, Any] = {}
    notes: Sequence[str] = ()

    def __init__(
        self,
        folder: Path,
        list_file: str | None = None,
        vae_features: str | None = None,
        text_features: str | None = None,
    ) -> None:
        """Args: the list and the two folders, where they are not found by themselves (relative to `folder`).

        Raises:
            UserError: a part is not there or not unique, or the list is damaged.
        """
        self._moments = _one_folder(folder, vae_features, _IMAGE_FOLDERS, "vae_features", ".npy")
        self._texts = _one_folder(folder, text_features, _TEXT_FOLDERS, "text_features", ".npz")
        lists = _lists(folder, list_file)
        listed = _distinct([item for path in lists for item in _items(path)])
        self._items = [item for item in listed if not _is_too_long(item)]
        if len(self._items) < len(listed):
            count = len(listed) - len(self._items)
            self.notes = (
                f"{count} images of a ratio above {_MOST_RATIO} are left out, as in the released code",
            )
        self._joined = collections.Counter(_joined(item["path"]) for item in self._items)
        self._stems = collections.Counter(PurePosixPath(item["path"]).stem for item in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def place(self, index: int) -> str:
        """The image's path in the list."""
        return str(self._items[index]["path"])

    def check(self, index: int) -> Sample:
        """See `FeatureSource`."""
        item = self._items[index]
        ratio = item.get("ratio")
        if isinstance(ratio, int | float) and ratio > _MOST_RATIO:
            raise UnusableFeatureError(
                f"ratio {ratio:g} is above {_MOST_RATIO}, as in the released data sets"
            )
        told = {"id": image_id(self.place(index)), "caption": item.get("prompt")}
        told |= {name: item[name] for name in ("height", "width") if isinstance(item.get(name), int)}
        return Sample.read(told, self.moments(index) | {"text": self.tokens(index)})

    def moments(self, index: int) -> dict[str, np.ndarray]:
        """See `FeatureSource`."""
        path = self._file(index, self._moments, ".npy")
        both = parse_npy(read_file(path), path.name)
        if both.ndim != 3 or both.shape[0] % 2:
            raise UnusableFeatureError(f"{path.name} has the shape {both.shape}, not (2 x channels, h, w)")
        mean, std = np.split(both, 2)
        if (std < 0).any():
            raise UnusableFeatureError(f"{path.name}: its second half is negative, so no standard deviation")
        return {"mean": mean, "std": std}

    def tokens(self, index: int) -> np.ndarray:
        """See `FeatureSource`."""
        path = self._file(index, self._texts, ".npz")
        members = parse_npz(read_file(path), path.name)
        if "caption_feature" not in members:
            raise UnusableFeatureError(f"{path.name} has no caption_feature")
        states = parse_npy(members["caption_feature"], f"caption_feature of {path.name}")
        if states.ndim != 3 or len(states) != 1:
            raise UnusableFeatureError(
                f"caption_feature of {path.name} is {states.shape}, not (1, tokens, width)"
            )
        if "attention_mask" not in members:
            return states[0]
        mask = _mask(members["attention_mask"], path.name)
        if mask.shape != states.shape[1:2] or not mask.any():
            raise UnusableFeatureError(f"attention_mask of {path.name} marks no token, or has another length")
        return states[0][mask]

    def empty_caption(self) -> np.ndarray | None:
        """The released code has none: it drops captions to a learned embedding."""
        return None

    def _file(self, index: int, folder: Path, suffix: str) -> Path:
        path = PurePosixPath(self.place(index)).with_suffix("")
        joined = _joined(self.place(index))
        # A name that two images share tells nothing.
        names = [joined] if self._joined[joined] == 1 else []
        names.append(str(path))
        if self._stems[path.name] == 1:
            names.append(path.name)
        for name in names:
            if (found := folder / f"{name}{suffix}").is_file():
                return found
        raise UnusableFeatureError(f"{folder.name}/{joined}{suffix} is missing, or two images would share it")


def looks_like_reference(folder: Path) -> bool:
    """Whether `folder` holds features in this layout."""
    return any(any(folder.glob(pattern)) for pattern in ("img_vae_*", "caption_feature*"))


def _one_folder(root: Path, given: str | None, patterns: Sequence[str], option: str, suffix: str) -> Path:
    if given is not None:
        if not (root / given).is_dir():
            raise UserError(f"{option}: {root / given} is not a folder")
        return root / given
    for pattern in patterns:
        found = [path for path in sorted(root.glob(pattern)) if path.is_dir() and _holds(path, suffix)]
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in found)
            raise UserError(f"{root} holds several sets of features ({names}); choose one with {option}=")
        if found:
            return found[0]
    raise UserError(f"{root} has no folder of {suffix} files ({', '.join(patterns)}); give {option}=")


def _holds(folder: Path, suffix: str) -> bool:
    return next(folder.rglob(f"*{suffix}"), None) is not None


def _lists(folder: Path, given: str | None) -> list[Path]:
    if given is not None:
        path = folder / given if (folder / given).exists() else Path(given)
        return [path]
    for pattern in _LISTS:
        if found := sorted(folder.glob(pattern)):
            return found
    raise UserError(f"{folder} has no list of images (partition/*.json); give list=")


def _items(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text)
            if path.suffix == ".json"
            else [line for line in text.splitlines() if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: not a list of images")
    for number, row in enumerate(rows, 1):
        if row == "":
            continue
        item = {"path": row.strip()} if isinstance(row, str) else row
        if not isinstance(item, dict) or not isinstance(item.get("path"), str) or not item["path"]:
            raise UserError(f"{path}: entry {number} has no path")
        yield item


def _is_too_long(item: Mapping[str, Any]) -> bool:
    ratio = item.get("ratio")
    return isinstance(ratio, int | float) and ratio > _MOST_RATIO


def _distinct(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each path once: one image in several lists is one sample."""
    found: dict[str, dict[str, Any]] = {}
    for item in items:
        found.setdefault(item["path"], item)
    return list(found.values())


def _joined(path: str) -> str:
    """`a/b_c` of `a/b/c.png`, as the released writer names files."""
    return "_".join(str(PurePosixPath(path).with_suffix("")).rsplit("/", 1))


def _mask(data: bytes, name: str) -> np.ndarray:
    """(tokens,) of whatever number type."""
    return parse_npy(data, f"attention_mask of {name}", kinds="fiub").reshape(-1) != 0
