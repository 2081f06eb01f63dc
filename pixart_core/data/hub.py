"""Rows of a data set that Hugging Face `datasets` reads: from the hub, or from a local folder."""

import json
import math
import os
from pathlib import Path
from typing import Any, Self

import datasets

from pixart_core.errors import UserError

CAPTION_COLUMNS = ("caption", "text", "prompt", "txt", "captions")
PREFIX = "hf:"


class HubRows:
    """One split of a data set; its images stay encoded until somebody wants pixels.

    Attributes:
        source: `hf:ID/split`, which opens the same rows again.
        name: the same without the place of a local folder: moving the data does not change it.
    """

    def __init__(self, source: str, rows: datasets.Dataset) -> None:
        self.source = source
        self.name = stable_name(source)
        features = rows.features
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if not images:
            raise UserError(f"{source}: has no image column (columns: {', '.join(features)})")
        self.image_column = images[0]
        for name in images:
            rows = rows.cast_column(name, datasets.Image(decode=False))
        self._images = rows.select_columns([self.image_column])
        self._rest = rows.remove_columns(images)
        self._caption_column = next((name for name in CAPTION_COLUMNS if name in self._rest.features), None)

    def __len__(self) -> int:
        return len(self._images)

    @classmethod
    def open(cls, source: str) -> Self:
        """Open `hf:ID[/split]`; ID is a hub id or the path of a folder. Without a split: train.

        Raises:
            UserError: it cannot be found, reached or read, or has no such split.
        """
        return cls(*open_split(source))

    def image_bytes(self, row: int) -> bytes:
        """The encoded image of a row; b"" if the row has none.

        Raises:
            UserError: no such row, or the file that it names is gone.
        """
        if not 0 <= row < len(self):
            raise UserError(f"{self.source}: has no row {row} (it has {len(self)}); did the data change?")
        value = self._images[row][self.image_column]
        if value is None:
            return b""
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise UserError(f"{self.source}, row {row}: {value['path']}: {error.strerror}") from error

    def text(self, row: int) -> tuple[str | None, dict[str, Any]]:
        """(caption, the other plain values of the row); class labels become their names."""
        values = dict(self._rest[row])
        for name, feature in self._rest.features.items():
            if isinstance(feature, datasets.ClassLabel) and values[name] is not None and values[name] >= 0:
                values[name] = feature.int2str(values[name])
        caption = values.pop(self._caption_column, None) if self._caption_column else None
        if isinstance(caption, list):
            # COCO-like: several captions of one picture; the first is the caption, all stay known.
            values[self._caption_column] = caption
            caption = caption[0] if caption else None
        # WebDataset members that `datasets` reads arrive as one "json" value: its keys are the sample's.
        nested = values.pop("json", None)
        if isinstance(nested, dict):
            values = nested | values
        return (None if caption is None else str(caption).strip() or None), {
            name: value for name, value in values.items() if _is_plain(value)
        }


def open_split(source: str) -> tuple[str, datasets.Dataset]:
    """(`hf:ID/split`, its rows) of `hf:ID[/split]`, which need not hold images.

    Raises:
        UserError: as `HubRows.open`.
    """
    name, split = _split_source(source.removeprefix(PREFIX))
    try:
        found = _load(name)
    except Exception as error:
        # `datasets` raises a dozen kinds here, network errors with long tails among them.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{source}: no data set that can be read on the hub or in a folder of that name ({reason})"
        ) from error
    if isinstance(found, datasets.Dataset):
        found = datasets.DatasetDict({split or "train": found})
    if split is None:
        split = "train" if "train" in found else next(iter(found)) if len(found) == 1 else None
    if split is None or split not in found:
        raise UserError(f"{source}: choose one of its splits: {', '.join(found)}, as hf:ID/split")
    place = Path(name).resolve().as_posix() if Path(name).is_dir() else name
    return f"{PREFIX}{place}/{split}", found[split]


def stable_name(source: str) -> str:
    """`hf:ID/split` without the place of a local folder: moving the data does not change it."""
    return PREFIX + "/".join(source.split("/")[-2:]) if source.startswith(f"{PREFIX}/") else source


def _split_source(text: str) -> tuple[str, str | None]:
    """(id or folder, split): what exists as a folder is one; else ORG/NAME/SPLIT has the split last."""
    if Path(text).exists():
        return text, None
    if text.startswith(("/", "./", "../")):
        return os.path.split(text)
    parts = text.split("/")
    return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 else (text, None)


def _load(name: str) -> Any:
    folder = Path(name)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return datasets.load_from_disk(name)
    return datasets.load_dataset(name)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return value is not None and not (isinstance(value, float) and math.isnan(value))
