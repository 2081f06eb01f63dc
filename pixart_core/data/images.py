"""Images as RGB: decoded by one set of rules everywhere, then cut to a size."""

import collections
import contextlib
import io
import os
import threading
import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from pixart_core.artifacts.image_records import ImageRecord, content_digest
from pixart_core.data.tars import TarReader, read_known_member
from pixart_core.errors import PixartError, UserError

IMAGE_SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)
# Pillow does not read these, or not with its wheel alone. They are named, not passed over.
OTHER_IMAGE_SUFFIXES = frozenset(
    [".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".nef", ".orf", ".psd", ".rw2",
     ".svg"]
)  # fmt: skip
OTHER_IMAGE = "format that is not read: convert it to .png or .jpg"
# Pillow's own limit for an error (twice its limit for a warning): 0.5 GB as RGB.
MAX_PIXELS = 178_956_970
_OPEN_ARCHIVES = 64
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def is_unread_image(name: str, names: Container[str]) -> bool:
    """Whether `name` is an image in a format that is not read, and `names` has none beside it that is.

    A raw picture or a drawing beside its .jpg is no image of its own.
    """
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in OTHER_IMAGE_SUFFIXES or os.path.basename(name).startswith("."):
        return False
    return not any(stem + other in names or stem + other.upper() in names for other in IMAGE_SUFFIXES)


class UnusableImageError(PixartError):
    """The bytes are no image that can be used, or what belongs to them is broken.

    Attributes:
        reason: one of a few, for counts.
        detail: what else is known, "" if nothing is.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def decode_image(data: bytes) -> Image.Image:
    """Decode every pixel of `data` and return it as 8-bit RGB, upright.

    EXIF rotation is applied; palette, grey, 16-bit, CMYK (through its ICC profile, if it has one) and
    YCbCr are converted; transparency is composited on white; of an animation the first frame counts.

    Raises:
        UnusableImageError: empty, not an image, truncated, damaged or too large.
    """
    if not data:
        raise UnusableImageError("empty file")
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images and odd metadata; the rules here decide alone.
            warnings.simplefilter("ignore")
            return _decode(data)
    except (MemoryError, UnusableImageError):
        raise
    except Image.UnidentifiedImageError as error:
        raise UnusableImageError("not an image") from error
    except Image.DecompressionBombError as error:
        raise UnusableImageError(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:
        # Damaged files make Pillow's parsers raise nearly anything: struct.error, SyntaxError, KeyError.
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImageError("truncated" if "truncated" in detail else "damaged", detail) from error


def _decode(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height == 0:
            raise UnusableImageError("has no pixels")
        if image.width * image.height > MAX_PIXELS:
            raise UnusableImageError(f"more than {MAX_PIXELS:,} pixels")
        image.load()  # truncation shows only here
        with contextlib.suppress(Exception):  # broken EXIF data say nothing about the pixels
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode in _WIDE_MODES:
        # Pillow's own conversion clips 16 bits at 255. Mode I is 16-bit data in every format read here.
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise UnusableImageError("32-bit pixels have no known range")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8), "L").convert("RGB")
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels have no known range")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    icc = image.info.get("icc_profile")
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(
                image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that does not fit: the plain formula below is what viewers show then
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale `image` until it covers height x width pixels and cut the centre out (Lanczos, antialiased).

    One resampling of the cropped source, so that no rounding moves the centre.
    """
    scale = max(height / image.height, width / image.width)
    crop_width, crop_height = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, min(left + crop_width, image.width), min(top + crop_height, image.height))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _change(record: ImageRecord, image: Image.Image) -> str:
    before, now = f"{record.width}x{record.height}", f"{image.width}x{image.height}"
    if before != now:
        return f"has {now} pixels, it had {before} when it was scanned"
    return "is not the picture that was scanned"


class ImageReader:
    """Reads the images of a manifest in any order; archives stay open. Safe to use from threads."""

    def __init__(self, folder: Path | str) -> None:
        """Args: folder: what relative paths of records are relative to (`Manifest.folder`)."""
        self.folder = Path(folder)
        self._archives: collections.OrderedDict[Path, TarReader] = collections.OrderedDict()
        self._parquet: collections.OrderedDict[Path, Any] = collections.OrderedDict()
        self._hub: dict[str, Any] = {}
        self._lock = threading.Lock()

    def read(self, record: ImageRecord) -> Image.Image:
        """The image of `record`, RGB.

        Raises:
            UserError: the file, archive or member is gone, or no longer the image that was scanned.
        """
        data = self.read_bytes(record)
        place = record.path if record.member is None else f"{record.path}, {record.member}"
        try:
            image = decode_image(data)
        except UnusableImageError as error:
            raise UserError(f"{place}: {error}; it was usable when the manifest was made") from error
        if record.digest is not None and content_digest(data) != record.digest:
            raise UserError(f"{place} {_change(record, image)}; restore it, or make the manifest again")
        return image

    def read_bytes(self, record: ImageRecord) -> bytes:
        """The encoded image, as it lies in the file, archive or hub data set.

        Raises:
            UserError: it is gone.
        """
        if record.path.startswith("hf:"):
            assert record.member is not None
            return self._hub_rows(record.path).image_bytes(int(record.member))
        path = self.folder / record.path
        try:
            if record.member is None:
                return path.read_bytes()
            if path.suffix.lower() == ".parquet":
                return self._parquet_rows(path).image_bytes(int(record.member))
            if record.offset is not None and record.length is not None:
                # Without the headers of all the other members: an archive is read again for each bucket.
                data = read_known_member(path, record.member, record.offset, record.length)
                if data is not None:
                    return data
            return self._archive(path).read(record.member)
        except UnusableImageError as error:
            raise UserError(f"{path}, row {record.member}: {error}") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error

    def _archive(self, path: Path) -> TarReader:
        # Dropped, not closed, when others need the room: another thread may be reading it.
        return self._opened(self._archives, path, TarReader)

    def _parquet_rows(self, path: Path) -> Any:
        from pixart_core.data.parquet import ParquetRows  # pyarrow is large

        return self._opened(self._parquet, path, ParquetRows)

    def _opened(self, readers: "collections.OrderedDict[Path, Any]", path: Path, kind: Any) -> Any:
        with self._lock:
            reader = readers.pop(path, None) or kind(path)
            readers[path] = reader
            if len(readers) > _OPEN_ARCHIVES:
                readers.popitem(last=False)
            return reader

    def _hub_rows(self, source: str) -> Any:
        from pixart_core.data.hub import HubRows  # `datasets` takes seconds to import

        with self._lock:
            if source not in self._hub:
                self._hub[source] = HubRows.open(source)
            return self._hub[source]
