"""A data set that is read as it streams in: its rows are written once into tars, which everything reads.

`shards/00000.tar` (a few hundred rows each, with their original bytes), beside each a `.json` that says
where the stream goes on. Both are written whole or not at all; ids are those of the rows, as if the whole
data set lay on disk.
"""

import dataclasses
import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
from datasets.utils.file_utils import xopen

from pixart_core.artifacts.manifest import image_id
from pixart_core.artifacts.publish import write_bytes, write_json
from pixart_core.data.candidates import Listing, Part, Size, Text
from pixart_core.data.hub import PREFIX, Columns, open_split, stable_name
from pixart_core.data.tar_samples import tar_part
from pixart_core.errors import PixartError, UserError

SHARDS = "shards"
ROWS = 256  # of a shard: what a kill loses at most, and what a limit may read too much
_SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


def list_stream(data: str, folder: Path) -> Listing:
    """The rows of `hf:ID[/split]`, read as far as the parts are asked for.

    Args:
        folder: of the manifest; gets `shards/`.

    Raises:
        UserError: it cannot be opened, or `folder` holds shards of another data set.
        PixartError: (from the parts) the stream breaks or the disk is full; what was read is kept.
    """
    return Listing(folder, Stream(data, folder).parts, lambda: Size(None))


class Stream:
    """The shards of one split: those that are there, and those to come."""

    def __init__(self, data: str, folder: Path) -> None:
        if not data.startswith(PREFIX):
            raise UserError(f"streaming reads hf:ID/split; {data} is read where it lies: leave streaming out")
        self._folder = folder
        self._data = data
        self._split: Any = None
        self._columns: Columns | None = None
        self._rows: Iterator[Mapping[str, Any]] | None = None

    def parts(self) -> Iterator[Part]:
        """Each shard; one that is not there is fetched when it is asked for."""
        name = stable_name(self._source())

        def identify(member: str) -> tuple[str, str]:
            row = str(int(PurePosixPath(member).stem))
            return image_id(name, row), f"{name}, row {row}"

        number, last = 0, _Shard()
        while not last.end:
            last = self._kept(number) or self._fetch(number, last)
            if last.rows:
                yield tar_part(str(self._folder), _tar_name(number), identify)
            number += 1

    def _source(self) -> str:
        """`hf:ID/split` of the shards, from the note beside them if there is one."""
        note = self._folder / SHARDS / "stream.json"
        kept = _read_json(note)
        if kept is not None and kept.get("data") == self._data:
            return str(kept["source"])
        source, _ = self._open()
        if kept is not None and kept.get("source") != source:
            raise UserError(
                f"{note.parent} holds the stream of {kept.get('source')}, not of {source}: "
                "choose another output"
            )
        write_json(note, {"data": self._data, "source": source})
        return source

    def _kept(self, number: int) -> "_Shard | None":
        values = _read_json(self._folder / SHARDS / f"{number:05d}.json")
        if values is None or (values["rows"] and not (self._folder / _tar_name(number)).is_file()):
            return None
        return _Shard(**values)

    def _open(self) -> tuple[str, Any]:
        if self._split is None:
            source, rows = open_split(self._data, streaming=True)
            if rows.features is None:
                rows = rows._resolve_features()
            self._columns = Columns(source, rows.features or {})
            for name in self._columns.images:
                rows = rows.cast_column(name, datasets.Image(decode=False))
            self._split = (source, rows)
        return self._split

    def _fetch(self, number: int, last: "_Shard") -> "_Shard":
        """Read the rows of shard `number`, which follow on those of `last`, and write them."""
        try:
            _, split = self._open()
            if self._rows is None:
                if last.state is not None:
                    split.load_state_dict(last.state)
                self._rows = iter(split)
            assert self._columns is not None
            samples = [
                (last.next + place, _image(row[self._columns.image]), self._columns.text(row))
                for place, row in enumerate(itertools.islice(self._rows, ROWS))
            ]
        except (PixartError, MemoryError):
            raise
        except Exception as error:  # network errors come as many classes
            self._rows = None
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise PixartError(
                f"{self._data}: reading on after row {last.next} failed ({reason}); what was read is kept, "
                "run again to go on"
            ) from error
        shard = _Shard(len(samples), last.next + len(samples), len(samples) < ROWS, split.state_dict())
        if samples:
            write_bytes(self._folder / _tar_name(number), _tar(samples))
        write_json(self._folder / SHARDS / f"{number:05d}.json", dataclasses.asdict(shard))
        return shard


@dataclasses.dataclass(frozen=True)
class _Shard:
    """How far the stream is behind a shard: rows of the shard, number of the next row, and the state of
    `datasets` there; whether nothing follows."""

    rows: int = 0
    next: int = 0
    end: bool = False
    state: dict[str, Any] | None = None


def _tar_name(number: int) -> str:
    return f"{SHARDS}/{number:05d}.tar"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read; remove its folder to read the stream again") from error
    return value if isinstance(value, dict) else None


def _image(value: Mapping[str, Any] | None) -> bytes:
    """The encoded image; b"" if the row has none."""
    if value is None:
        return b""
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    try:
        with xopen(value["path"], "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        return b""  # the ledger tells; without it the stream would end here at every try


def _tar(samples: Iterable[tuple[int, bytes, Text]]) -> bytes:
    """A WebDataset tar; no times and owners, so that the same rows give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row, image, (caption, values) in samples:
            members = {_suffix(image): image, ".json": json.dumps(values, sort_keys=True).encode()}
            if caption is not None:
                members[".txt"] = caption.encode()
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{row:09d}{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _suffix(image: bytes) -> str:
    """That of the image's kind; what is unknown gets one too, and is found out when it is decoded."""
    return next((suffix for start, suffix in _SIGNATURES.items() if image.startswith(start)), ".png")
