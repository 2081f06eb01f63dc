"""A sample set: images with a line of provenance each. Writer and reader."""

import dataclasses
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.publish import write_bytes, write_text
from pixart_core.errors import PixartError, UserError

SAMPLES = "samples.jsonl"
IMAGES = "images"
PNG_TEXT = "pixart"  # key of the text that a PNG holds
_PNG_END = bytes.fromhex("0000000049454e44ae426082")  # the chunk IEND


@dataclasses.dataclass(frozen=True)
class SampleRecord:
    """One generated image.

    Attributes:
        id: id of the prompt: the manifest id it came from, else its number.
        file: path relative to the sample set's folder; numbered, so no two prompts share a name.
        seed: the image's own seed, from which its noise derives alone.
        height, width: pixels.
        meta: ground truth of the prompt, where its source has one.
        untrained_size: whether the size is far from those that the model was trained on (`any_size`).
        negative_prompt, guidance_scale, num_inference_steps: None where nobody recorded them.
    """

    id: str
    file: str
    prompt: str
    seed: int
    height: int
    width: int
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    untrained_size: bool = False
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None


FIELDS = frozenset(field.name for field in dataclasses.fields(SampleRecord))


def image_file(number: int) -> str:
    """Name of image `number` of a set."""
    return f"{IMAGES}/{number:06d}.png"


def write_image(folder: Path, record: SampleRecord, image: Image.Image, settings: dict[str, Any]) -> None:
    """Publish one image; prompt, seed and settings ride along as PNG text."""
    provenance = PngImagePlugin.PngInfo()
    told = _told_by_image(record) | settings
    provenance.add_itxt(PNG_TEXT, json.dumps(told, sort_keys=True, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=provenance)
    write_bytes(folder / record.file, buffer.getvalue())


def _told_by_image(record: SampleRecord) -> dict[str, Any]:
    """What the PNG itself holds of its record."""
    return {name: value for name, value in dataclasses.asdict(record).items() if name != "meta"}


def is_drawn(folder: Path, record: SampleRecord) -> bool:
    """Whether the image of `record` is in `folder`, by its name, what it tells and its end (not its pixels).

    Images are published whole: a killed run leaves none that is cut off.

    Raises:
        UserError: something else has its name.
    """
    path = folder / record.file
    if not os.path.lexists(path):
        return False
    told = _told(path)
    if told is None or any(told.get(name) != value for name, value in _told_by_image(record).items()):
        raise UserError(f"{path} is damaged, or not of this run: remove it and run again")
    return True


def _told(path: Path) -> dict[str, Any] | None:
    """What a PNG tells of itself; None if it tells nothing, or is cut off."""
    try:
        with path.open("rb") as file:
            with Image.open(file) as image:
                told = json.loads(image.info[PNG_TEXT])
            file.seek(-len(_PNG_END), os.SEEK_END)
            return told if isinstance(told, dict) and file.read() == _PNG_END else None
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError):
        return None


def finish_samples(folder: Path, records: Sequence[SampleRecord], card: Card) -> None:
    """Write `samples.jsonl` (a line an image: its record, and what else its PNG tells), then the card.

    Raises:
        PixartError: the disk is full, or an image is gone.
    """
    lines = (json.dumps(_row(folder, record), sort_keys=True, ensure_ascii=False) for record in records)
    write_text(folder / SAMPLES, "".join(f"{line}\n" for line in lines))
    card.write(folder)


def _row(folder: Path, record: SampleRecord) -> dict[str, Any]:
    told = _told(folder / record.file)
    if told is None:
        raise PixartError(f"{folder / record.file} is gone or was damaged just now: run again")
    return told | dataclasses.asdict(record)


def read_samples(folder: Path) -> list[SampleRecord]:
    """The records of a finished sample set.

    Raises:
        UserError: not a sample set, unfinished, or an image is gone.
    """
    Card.read(folder, "samples")
    records = list(_rows(folder / SAMPLES))
    for record in records:
        if not (folder / record.file).is_file():
            raise UserError(f"{folder}: {record.file} is listed in {SAMPLES} but is not there")
    return records


def _rows(path: Path) -> Iterator[SampleRecord]:
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            # What all images have in common is for people, and for `Provenance` of a PNG.
            yield SampleRecord(**{name: value for name, value in row.items() if name in FIELDS})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}: not a sample ({error})") from error
