"""Features in WebDataset archives and in Hugging Face data sets, as `feature_exchange` describes them."""

import collections
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pixart_core.data.tars import TarReader
from pixart_core.encoders.array_files import UnusableFeatureError, parse_npy
from pixart_core.encoders.feature_exchange import EMPTY_CAPTION, MOMENTS, Sample, moment_names
from pixart_core.errors import UserError

_OPEN_ARCHIVES = 64


def read_empty_caption(folder: Path) -> np.ndarray | None:
    """The tokens of "" beside an export, None if there are none.

    Raises:
        UserError: damaged.
    """
    path = folder / EMPTY_CAPTION
    if not path.is_file():
        return None
    try:
        return parse_npy(path.read_bytes(), str(path))
    except UnusableFeatureError as error:
        raise UserError(f"{error}; export again") from error


class ArchiveSource:
    """A `FeatureSource` of WebDataset archives."""

    kind = "webdataset"
    notes: Sequence[str] = ()

    def __init__(self, folder: Path, archives: Sequence[Path], known: Mapping[str, Any]) -> None:
        """Raises: UserError: an archive is damaged, or holds no features."""
        self.known = known
        self._folder = folder
        self._archives = archives
        self._open: collections.OrderedDict[int, TarReader] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._keys: list[tuple[int, str]] = []
        for number, path in enumerate(archives):
            reader = self._reader(number)
            if reader.index.damage:
                raise UserError(f"{path}: {reader.index.damage}")
            names = reader.index.members
            self._keys += [(number, name.removesuffix(".json")) for name in names if _is_sample(name)]
        if not self._keys:
            raise UserError(f"{folder}: its archives hold no KEY.json beside KEY.mean.npy and KEY.text.npy")
        number, key = self._keys[0]
        self.flips = f"{key}.mean_flipped.npy" in self._reader(number).index.members

    def __len__(self) -> int:
        return len(self._keys)

    def place(self, index: int) -> str:
        """Where sample `index` lies."""
        number, key = self._keys[index]
        return f"{self._archives[number]}, {key}"

    def check(self, index: int) -> Sample:
        """See `FeatureSource`."""
        try:
            told = json.loads(self._member(index, "json"))
        except ValueError as error:
            raise UnusableFeatureError("its .json is not JSON") from error
        if not isinstance(told, dict):
            raise UnusableFeatureError("its .json is not a JSON object")
        named = {"id": self._keys[index][1]} | told
        return Sample.read(named, self.moments(index) | {"text": self.tokens(index)})

    def moments(self, index: int) -> dict[str, np.ndarray]:
        """See `FeatureSource`."""
        return {name: self._array(index, name) for name in moment_names(self.flips)}

    def tokens(self, index: int) -> np.ndarray:
        """See `FeatureSource`."""
        return self._array(index, "text")

    def empty_caption(self) -> np.ndarray | None:
        """See `FeatureSource`."""
        return read_empty_caption(self._folder)

    def _array(self, index: int, name: str) -> np.ndarray:
        return parse_npy(self._member(index, f"{name}.npy"), f"its .{name}.npy")

    def _member(self, index: int, ending: str) -> bytes:
        number, key = self._keys[index]
        reader = self._reader(number)
        if f"{key}.{ending}" not in reader.index.members:
            raise UnusableFeatureError(f"its .{ending} is missing")
        return reader.read(f"{key}.{ending}")

    def _reader(self, number: int) -> TarReader:
        with self._lock:
            reader = self._open.pop(number, None) or TarReader(self._archives[number])
            self._open[number] = reader
            if len(self._open) > _OPEN_ARCHIVES:
                self._open.popitem(last=False)  # its last reader closes it
            return reader


def _is_sample(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".json" and "." not in path.stem


class DatasetSource:
    """A `FeatureSource` of a data set that `datasets` saved."""

    kind = "hf"
    notes: Sequence[str] = ()

    def __init__(self, folder: Path, known: Mapping[str, Any]) -> None:
        """Raises: UserError: it cannot be read, or lacks a column."""
        import datasets  # takes seconds to import

        self.known = known
        self._folder = folder
        try:
            found = datasets.load_from_disk(str(folder))
        except Exception as error:
            # pyarrow and datasets raise a dozen kinds for damaged files.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{folder}: no data set that can be read ({reason})") from error
        if not isinstance(found, datasets.Dataset):
            raise UserError(f"{folder}: holds several splits ({', '.join(found)}); import one of them")
        missing = sorted({"id", *MOMENTS, "text", "latent_shape", "text_shape"} - set(found.column_names))
        if missing:
            raise UserError(f"{folder}: lacks the columns {', '.join(missing)}")
        self._rows = found.with_format("arrow")
        self._told = [name for name in found.column_names if name in Sample.__slots__]
        self.flips = "mean_flipped" in found.column_names

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> str:
        """Where sample `index` lies."""
        return f"{self._folder}, row {index}"

    def check(self, index: int) -> Sample:
        """See `FeatureSource`."""
        row = self._rows[index]
        told = {name: row.column(name)[0].as_py() for name in self._told if name != "text"}
        return Sample.read(told, self.moments(index) | {"text": self.tokens(index)})

    def moments(self, index: int) -> dict[str, np.ndarray]:
        """See `FeatureSource`."""
        row = self._rows[index]
        return {name: _array(row, name, "latent_shape") for name in moment_names(self.flips)}

    def tokens(self, index: int) -> np.ndarray:
        """See `FeatureSource`."""
        return _array(self._rows[index], "text", "text_shape")

    def empty_caption(self) -> np.ndarray | None:
        """See `FeatureSource`."""
        return read_empty_caption(self._folder)


def _array(row: Any, name: str, shape: str) -> np.ndarray:
    sizes, values = row.column(shape)[0].as_py(), row.column(name)[0].values
    if values is None or sizes is None:
        raise UnusableFeatureError(f"its {name} is missing")
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind != "f" or len(array) != np.prod(sizes, dtype=np.int64):
        raise UnusableFeatureError(f"its {name} has {len(array)} numbers, not those of {sizes}")
    if not np.isfinite(array).all():
        raise UnusableFeatureError(f"its {name} holds values that are not finite")
    return array.reshape(sizes)
