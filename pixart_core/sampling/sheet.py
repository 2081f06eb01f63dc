"""A contact sheet: the first samples of a set in one picture, each above its prompt."""

import functools
import importlib.util
import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pixart_core.artifacts.publish import write_bytes
from pixart_core.artifacts.samples import SampleRecord

SHEET = "contact_sheet.png"
MOST = 32  # pictures on a sheet
COLUMNS = 8
CELL = 160  # pixels, the longer side of a picture
GAP = 12
TEXT_LINES = 4
LINE_HEIGHT = 13
FONT_SIZE = 10.5
DOTS = "…"
READ = 400  # letters of a prompt; more never fit
_NO_GLYPH = "\U0010ffff"  # no font has it

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_sheet(folder: Path, records: Sequence[SampleRecord]) -> None:
    """Write `contact_sheet.png` of the first samples of `folder`."""
    shown = records[:MOST]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    cell_height = CELL + TEXT_LINES * LINE_HEIGHT + GAP
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + rows * cell_height), "#f6f6f4")
    draw, font = ImageDraw.Draw(sheet), _font()
    for number, record in enumerate(shown):
        left = GAP + number % columns * (CELL + GAP)
        top = GAP + number // columns * cell_height
        picture = _fit(Image.open(folder / record.file))
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        text = printable(record.prompt) or Path(record.file).name
        for line, words in enumerate(wrapped(text, font)):
            draw.text((left, top + CELL + 3 + line * LINE_HEIGHT), words, fill="#333333", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    write_bytes(folder / SHEET, buffer.getvalue())


@functools.cache
def _font() -> Font:
    """DejaVu Sans as matplotlib brings it: Latin, Greek, Cyrillic; the same on every machine."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            # Without Raqm, which only some builds of Pillow have: other builds would set other bytes.
            return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    return ImageFont.load_default(size=FONT_SIZE)


def printable(prompt: str) -> str:
    """`prompt` in letters that the font has and sets from left to right; "" if none is left.

    Accents may go, symbols become their names ("[fire]"), and dots stand for what cannot be drawn: the
    gallery shows everything.
    """
    parts = "".join(_drawable(letter) for letter in " ".join(prompt[:READ].split()))
    while DOTS * 2 in parts or f"{DOTS} {DOTS}" in parts:
        parts = parts.replace(DOTS * 2, DOTS).replace(f"{DOTS} {DOTS}", DOTS)
    text = " ".join(parts.split())
    return text if any(letter.isalnum() for letter in text) else ""


@functools.lru_cache(4096)
def _drawable(letter: str) -> str:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf", "Cc"):
        return ""  # joiners, accents and marks of direction, which belong to what is beside them
    if _has_glyph(letter) and unicodedata.bidirectional(letter) not in ("R", "AL"):
        return letter
    base = "".join(part for part in unicodedata.normalize("NFKD", letter) if _has_glyph(part))
    if base and base.isascii():
        return base
    if unicodedata.category(letter) == "So":
        return f"[{unicodedata.name(letter, 'symbol').lower()}]"
    return DOTS


@functools.lru_cache(4096)
def _has_glyph(letter: str) -> bool:
    """Whether the font draws `letter` as anything but the box of what it lacks."""
    font = _font()
    if letter.isspace():
        return True
    box, drawn = font.getmask(_NO_GLYPH), font.getmask(letter)
    return drawn.size != box.size or bytes(drawn) != bytes(box)


def wrapped(text: str, font: Font) -> list[str]:
    """At most `TEXT_LINES` lines of a cell's width; dots end what does not fit."""
    lines, line = [], ""
    for word in (piece for whole in text.split() for piece in _pieces(whole, font)):
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= CELL:
            line = longer
        else:
            lines.append(line)
            line = word
    lines.append(line)
    if len(lines) > TEXT_LINES:
        lines = lines[:TEXT_LINES]
        while font.getlength(f"{lines[-1]} {DOTS}") > CELL:
            lines[-1] = lines[-1][:-1].rstrip()
        lines[-1] += f" {DOTS}"
    return lines


def _pieces(word: str, font: Font) -> list[str]:
    """A word in parts that each fit into a line."""
    pieces = [""]
    for letter in word:
        if font.getlength(pieces[-1] + letter) > CELL:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _fit(picture: Image.Image) -> Image.Image:
    """Scale the longer side to a cell: small pictures crisply, large ones smoothly."""
    factor = CELL / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)
