"""A contact sheet: the first samples of a set in one picture, each above its prompt."""

import io
import textwrap
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
LETTERS = 27  # of a line


def write_sheet(folder: Path, records: Sequence[SampleRecord]) -> None:
    """Write `contact_sheet.png` of the first samples of `folder`."""
    shown = records[:MOST]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    cell_height = CELL + TEXT_LINES * LINE_HEIGHT + GAP
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + rows * cell_height), "#f6f6f4")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, record in enumerate(shown):
        left = GAP + number % columns * (CELL + GAP)
        top = GAP + number // columns * cell_height
        picture = _fit(Image.open(folder / record.file))
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        lines = textwrap.wrap(record.prompt, LETTERS, max_lines=TEXT_LINES, placeholder=" …")
        for line, text in enumerate(lines):
            draw.text((left, top + CELL + 3 + line * LINE_HEIGHT), text, fill="#333333", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    write_bytes(folder / SHEET, buffer.getvalue())


def _fit(picture: Image.Image) -> Image.Image:
    """Scale the longer side to a cell: small pictures crisply, large ones smoothly."""
    factor = CELL / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)
