"""Image files as they come: every kind that must be read right, and every kind that must be left out."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A picture that does not compress, so that cutting its file cuts its pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_bomb() -> bytes:
    """A small PNG file whose header promises 60,000 x 60,000 pixels."""
    data = bytearray(encode(Image.new("L", (8, 8))))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def unusable() -> dict[str, bytes]:
    """File name → bytes that no image can be had from."""
    png, jpeg = encode(noise()), encode(noise(), "JPEG", quality=95)
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "empty.png": b"",
        "text.jpg": b"<html>404 not found</html>",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "header-only.png": png[:33],
        "flipped.png": bytes(flipped),
        "bomb.png": png_bomb(),
        "float.tif": encode(Image.new("F", (4, 4), 0.5), "TIFF"),
    }


def write_salted_folder(folder: Path, good: int) -> Path:
    """`good` captioned images (some in odd modes) and one file of every unusable kind."""
    (folder / "deep" / "er").mkdir(parents=True)
    modes = ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16")
    for index in range(good):
        mode = modes[index % len(modes)]
        image = noise(40 + index, 30, seed=index)
        if mode == "I;16":
            image = Image.fromarray(np.full((30, 40), 9000 * (index % 7), np.uint16))
        elif mode != "RGB":
            image = image.convert(mode)
        place = folder / ("deep/er" if index % 2 else ".") / f"image {index:03d}"
        kind, suffix = ("JPEG", ".jpg") if mode == "CMYK" else ("PNG", ".png")
        place.with_suffix(suffix).write_bytes(encode(image, kind))
        place.with_suffix(".txt").write_text(f"caption of image {index}.\n")
    for name, data in unusable().items():
        (folder / name).write_bytes(data)
    return folder
