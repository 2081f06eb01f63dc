"""Rows of a data set that Hugging Face `datasets` reads: from the hub, or from a local folder."""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import datasets

from pixart_core.artifacts.manifest import image_id
from pixart_core.data.candidates import Candidate, LazyCandidates, Listing, Opened, Part, Size, Text, key_of
from pixart_core.data.side_texts import caption_and_values
from pixart_core.errors import UserError

CAPTION_COLUMNS = ("caption", "text", "prompt", "txt", "captions")
PREFIX = "hf:"


class Columns:
    """Which columns of a data set are the image, the caption and the rest."""

    def __init__(self, source: str, features: Mapping[str, Any]) -> None:
        """Raises UserError: there is no image column."""
        self.images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if not self.images:
            raise UserError(f"{source}: has no image column (columns: {', '.join(features)})")
        self.image = self.images[0]
        self._classes = {
            name: feature for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)
        }

    def text(self, row: Mapping[str, Any]) -> Text:
        """(caption, the other plain values of the row); class labels become their names."""
        values = {name: value for name, value in row.items() if name not in self.images}
        for name, feature in self._classes.items():
            if values[name] is not None and values[name] >= 0:
                values[name] = feature.int2str(values[name])
        # WebDataset members that `datasets` reads arrive as one "json" value: its keys are the sample's.
        nested = values.pop("json", None)
        if isinstance(nested, dict):
            values = nested | values
        return caption_and_values(values, CAPTION_COLUMNS)


class HubRows:
    """One split of a data set; its images stay encoded until somebody wants pixels.

    Attributes:
        source: `hf:ID/split`, which opens the same rows again.
        name: the same without the place of a local folder: moving the data does not change it.
    """

    def __init__(self, source: str, rows: datasets.Dataset) -> None:
        self.source = source
        self.name = stable_name(source)
        self.fingerprint = str(rows._fingerprint)
        self._columns = Columns(source, rows.features)
        for name in self._columns.images:
            rows = rows.cast_column(name, datasets.Image(decode=False))
        self._images = rows.select_columns([self._columns.image])
        self._rest = rows.remove_columns(self._columns.images)

    def __len__(self) -> int:
        return len(self._images)

    @classmethod
    def open(cls, source: str) -> Self:
        """Open `hf:ID[/split]`; ID is a hub id or the path of a folder. Without a split: train.

        Raises:
            UserError: it cannot be found, reached or read, or has no such split.
        """
        return cls(*open_split(source, streaming=False))

    def image_bytes(self, row: int) -> bytes:
        """The encoded image of a row; b"" if the row has none.

        Raises:
            UserError: no such row, or the file that it names is gone.
        """
        if not 0 <= row < len(self):
            raise UserError(f"{self.source}: has no row {row} (it has {len(self)}); did the data change?")
        value = self._images[row][self._columns.image]
        if value is None:
            return b""
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise UserError(f"{self.source}, row {row}: {value['path']}: {error.strerror}") from error

    def text(self, row: int) -> Text:
        """(caption, the other plain values of the row); class labels become their names."""
        return self._columns.text(self._rest[row])


def list_hub(data: str) -> Listing:
    """The rows of `hf:ID[/split]`, one part."""
    rows = HubRows.open(data)
    if len(rows) == 0:
        raise UserError(f"{data}: holds no rows")

    def make(row: int) -> Candidate:
        return Candidate(
            id=image_id(rows.name, str(row)),
            path=rows.source,
            member=str(row),
            name=f"{rows.name}, row {row}",
            image=functools.partial(rows.image_bytes, row),
            text=functools.partial(rows.text, row),
        )

    def parts() -> Iterator[Part]:
        key = key_of("hub", rows.name, rows.fingerprint, len(rows))
        yield Part(rows.name, key, lambda: Opened(LazyCandidates(range(len(rows)), make)))

    return Listing(Path.cwd(), parts, lambda: Size(len(rows)))


def open_split(source: str, *, streaming: bool) -> tuple[str, Any]:
    """(`hf:ID/split`, its `datasets.Dataset` or `IterableDataset`) of `hf:ID[/split]`.

    Raises:
        UserError: as `HubRows.open`.
    """
    name, split = _split_source(source.removeprefix(PREFIX))
    try:
        found = _load(name, streaming)
    except Exception as error:
        # `datasets` raises a dozen kinds here, network errors with long tails among them.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{source}: no data set that can be read on the hub or in a folder of that name ({reason})"
        ) from error
    if not isinstance(found, dict):
        found = {split or "train": found}
    if split is None:
        split = "train" if "train" in found else next(iter(found)) if len(found) == 1 else None
    if split is None or split not in found:
        raise UserError(f"{source}: choose one of its splits: {', '.join(found)}, as hf:ID/split")
    place = Path(name).resolve().as_posix() if Path(name).is_dir() else name
    return f"{PREFIX}{place}/{split}", found[split]


def stable_name(source: str) -> str:
    """`hf:ID/split` without the place of a local folder."""
    local = source.startswith(f"{PREFIX}/")
    return PREFIX + "/".join(source.split("/")[-2:]) if local else source


def _split_source(text: str) -> tuple[str, str | None]:
    """(id or folder, split): what exists as a folder is one; else ORG/NAME/SPLIT has the split last."""
    if Path(text).exists():
        return text, None
    if text.startswith(("/", "./", "../")):
        return os.path.split(text)
    parts = text.split("/")
    return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 else (text, None)


def _load(name: str, streaming: bool) -> Any:
    folder = Path(name)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(name)
        if not streaming:
            return found
        if isinstance(found, datasets.Dataset):
            return found.to_iterable_dataset()
        return {split: rows.to_iterable_dataset() for split, rows in found.items()}
    return datasets.load_dataset(name, streaming=streaming)
