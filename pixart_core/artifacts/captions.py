"""Captions: a folder with one row an image, in the order of the manifest.

`captions.jsonl` (a `CaptionRow` a line; fields at their defaults are left out), `failed.jsonl` ({"id",
"path", "reason"} of each image without a caption), `settings.json` (what decides a caption: other settings
never continue the same folder), and last a card of kind "captions". How the rows of an unfinished run are
kept: `artifacts/caption_work.py`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.image_records import digest_number
from pixart_core.artifacts.publish import staged_file, write_text
from pixart_core.errors import UserError

CAPTIONS = "captions.jsonl"
FAILED = "failed.jsonl"
SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class CaptionRow:
    """The caption of the image `id` of a manifest, and what looks wrong with it.

    Attributes:
        flags: see `data.caption_flags`; "failed": there is no caption, and `reason` says why.
        attempt: 0 for the greedy answer, else the number of the sampled one that was kept.
        tokens: length for the text encoder, end token included, if its tokenizer was at hand.
        excluded: later steps leave this image out (`exclude_flagged`, and always where it failed).
        digest: that of the picture that was captioned (`ImageRecord.digest`), None where it is unknown.
    """

    id: str
    caption: str
    flags: tuple[str, ...] = ()
    attempt: int = 0
    tokens: int | None = None
    excluded: bool = False
    reason: str | None = None
    digest: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no caption at all."""
        return self.reason is not None


def read_captions(folder: Path | str) -> dict[str, CaptionRow]:
    """The rows of a finished folder of captions, by image id; `excluded` ones too.

    Raises:
        UserError: not captions, unfinished, or a damaged row (named).
    """
    return {row.id: row for row in stream_captions(folder)}


def stream_captions(folder: Path | str) -> Iterator[CaptionRow]:
    """The rows of a finished folder of captions, one at a time: for ten million of them.

    Raises:
        UserError: as `read_captions`.
    """
    Card.read(Path(folder), "captions")
    return (row for row, _ in rows_of(Path(folder) / CAPTIONS))


def rows_of(path: Path) -> Iterator[tuple[CaptionRow, int]]:
    """(row, where its line begins) of each row of a file; none if there is no file, empty lines are skipped.

    Raises:
        UserError: a damaged row, named.
    """
    start = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    if line != b"\n":
                        yield parse_row(line), start
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{path}:{number}: damaged row; remove it and run again") from error
                start += len(line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def parse_row(line: bytes) -> CaptionRow:
    """The row of one line.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    values = json.loads(line)
    row = CaptionRow(**(values | {"flags": tuple(values["flags"])}))
    digest_number(row.digest)
    return row


def row_line(row: CaptionRow) -> str:
    """One line of `captions.jsonl`, its end included."""
    default = {field.name: field.default for field in dataclasses.fields(row)} | {"flags": None}
    plain = {key: value for key, value in vars(row).items() if value != default[key]}
    return json.dumps(plain, ensure_ascii=False, sort_keys=True) + "\n"


def write_captions(folder: Path, rows: Iterable[CaptionRow], place_of: Callable[[str], str]) -> None:
    """Put `rows` in the place of what `folder` holds; the caller writes the card after it.

    Args:
        place_of: where the image of an id lies, for the list of failed ones.

    Raises:
        PixartError: the disk is full; the rows that were there are untouched.
    """
    failed = []
    with staged_file(folder / CAPTIONS) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(row_line(row))
            if row.failed:
                failed.append({"id": row.id, "path": place_of(row.id), "reason": row.reason})
    lines = (json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n" for row in failed)
    write_text(folder / FAILED, "".join(lines))
