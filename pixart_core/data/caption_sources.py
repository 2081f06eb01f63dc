"""Captions wherever they are, one after another, without looking at a single picture."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pixart_core.artifacts.caption_work import PARTS
from pixart_core.artifacts.captions import CAPTIONS, stream_captions
from pixart_core.artifacts.card import Card, read_card
from pixart_core.artifacts.manifest import image_id, manifest_folder, read_manifest
from pixart_core.artifacts.patterns import expand_pattern
from pixart_core.data.candidates import Candidate, Listing
from pixart_core.data.caption_tables import (
    READERS,
    Caption,
    CaptionField,
    find_column,
    first_text,
    read_table,
)
from pixart_core.data.images import UnusableImageError
from pixart_core.data.sources import list_images
from pixart_core.errors import UserError

_HUB_ROWS = 1000


@dataclasses.dataclass(frozen=True)
class CaptionSource:
    """Captions that can be read, and read again.

    Attributes:
        name: short, without the folders above.
        read: begins at the first caption each time.
        original: what `pixart caption` was given, if this is its result and keeps its manifest.
    """

    name: str
    read: Callable[[], Iterator[Caption]]
    original: "CaptionSource | None" = None


def open_captions(source: str, column: str | None = None) -> CaptionSource:
    """Find the captions of `source`.

    Args:
        source: folder of captions made by `pixart caption`, a manifest, any other `--data` with captions
            of its own, or file(s): .txt (a caption a line), .jsonl, .csv, .tsv, .parquet.
        column: of the table, or field of the samples' JSON.

    Raises:
        UserError: nothing there, or nothing that captions could be in. Reading raises it for rows that
            are no text, and for a column that is not there.
    """
    name = _short(source)
    if source.startswith("hf:"):
        return CaptionSource(name, _hub(source, column))
    path = Path(source).expanduser()
    card = read_card(path)
    if card is not None:
        return _artifact(path, str(card["kind"]), column)
    if (path / PARTS).is_dir() or (path / CAPTIONS).is_file():
        raise UserError(f"{source}: captioning is unfinished; run it again, or give one of its .jsonl files")
    files = [path] if path.is_file() else [] if path.is_dir() else expand_pattern(str(path))
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) == 1 and suffixes <= set(READERS):
        return CaptionSource(name, lambda: read_table(files, column))
    if files and suffixes != {".tar"}:
        kinds = ", ".join(READERS)
        raise UserError(
            f"{source}: captions are read from {kinds}, .tar, folders and hf:ID, one kind at a time"
        )
    listing = _listing(path)
    return CaptionSource(name, lambda: _data_rows(path, listing, column))


def sample(source: CaptionSource, limit: int) -> CaptionSource:
    """`limit` captions of `source`, those whose ids have the smallest hashes: the same for any order.

    Two sources that name the same images give the captions of the same ones. Blank captions are not
    chosen. Reads the source once and keeps 8 bytes a caption.
    """
    import numpy as np

    hashes = np.fromiter((_hash(row.id) for row in source.read() if has_text(row)), dtype=np.uint64)
    if len(hashes) <= limit:
        return source
    largest = int(np.partition(hashes, limit - 1)[limit - 1])
    # Ids that are repeated have one hash: as many of them as there is room for.
    room = limit - int((hashes < largest).sum())

    def read() -> Iterator[Caption]:
        left = room
        for row in source.read():
            if row.problem is not None:
                yield row
            elif has_text(row) and (number := _hash(row.id)) <= largest:
                left -= number == largest
                if number < largest or left >= 0:
                    yield row

    return dataclasses.replace(source, read=read)


def has_text(row: Caption) -> bool:
    """Whether there is a caption, and not a blank one."""
    return row.text is not None and row.text != "" and not row.text.isspace()


def _artifact(path: Path, kind: str, column: str | None) -> CaptionSource:
    name = _short(str(path))
    if kind == "manifest":
        return CaptionSource(name, lambda: _manifest_rows(path, column))
    if kind != "captions":
        raise UserError(f"{path} holds {kind}, expected captions, a manifest or data with captions")
    if column is not None:
        raise UserError(f"{path} holds captions of pixart, which have no column {column!r}")
    manifest = manifest_folder(path)
    original = None if manifest is None else CaptionSource(name, lambda: _manifest_rows(manifest, None))

    def read() -> Iterator[Caption]:
        # Rows of images that the data no longer hold come last.
        number = Card.read(path, "captions").details.get("images")
        for row in itertools.islice(stream_captions(path), number):
            excluded = f"excluded ({row.reason or ', '.join(row.flags)})" if row.excluded else None
            yield Caption(row.id, row.caption, excluded)

    return CaptionSource(name, read, original)


def _listing(path: Path) -> Listing:
    try:
        return list_images(str(path))
    except UserError as error:
        raise UserError(f"{error}{_hint(path)}") from error


def _data_rows(path: Path, listing: Listing, column: str | None) -> Iterator[Caption]:
    field, found = CaptionField(str(path), column), False
    for candidates, problems in (part.open() for part in listing.parts()):
        found = found or bool(candidates) or bool(problems)
        for problem in problems:
            yield Caption(problem["path"], None, problem["reason"])
        for candidate in candidates:
            yield _of_candidate(candidate, field)
    field.finish()
    if not found:
        raise UserError(f"{path}: holds no images{_hint(path)}")


def _hint(folder: Path) -> str:
    """Captions without images lie in files that have to be named."""
    files = list(folder.iterdir()) if folder.is_dir() else []
    suffixes = sorted({file.suffix for file in files if file.suffix in READERS})
    names = ", ".join(f"'{folder}/*{suffix}'" for suffix in suffixes)
    return f"; captions in files of their own are given as {names}" if names else ""


def _manifest_rows(folder: Path, column: str | None) -> Iterator[Caption]:
    field = CaptionField(str(folder), column)
    for record in read_manifest(folder).records:
        yield Caption(record.id, record.caption if column is None else field.of(record.meta))
    field.finish()


def _of_candidate(candidate: Candidate, field: CaptionField) -> Caption:
    try:
        caption, meta = candidate.text()
    except (UnusableImageError, UserError) as error:
        return Caption(candidate.id, None, str(error))
    except OSError as error:
        return Caption(candidate.id, None, f"cannot be read: {error.strerror or error}")
    return Caption(candidate.id, caption if field.column is None else field.of(meta))


def _hub(source: str, column: str | None) -> Callable[[], Iterator[Caption]]:
    from pixart_core.data import hub  # `datasets` takes seconds to import

    place, rows = hub.open_split(source, streaming=False)
    name, found = hub.stable_name(place), find_column(source, column, rows.column_names)

    def read() -> Iterator[Caption]:
        number = 0
        for batch in rows.select_columns([found]).iter(batch_size=_HUB_ROWS):
            for value in batch[found]:
                text = first_text(value, f"{source}, row {number}", found)
                yield Caption(image_id(name, str(number)), text)
                number += 1

    return read


def _short(source: str) -> str:
    return source if source.startswith("hf:") else re.split(r"/+", source.rstrip("/"))[-1] or source


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"sample")
    return int.from_bytes(digest.digest(), "big")
