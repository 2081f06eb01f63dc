"""What stands beside an image: its caption and values, from side files, rows of tables, or both."""

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from pixart_core.data.candidates import Text
from pixart_core.data.images import UnusableImageError

CAPTION_KEYS = ("caption", "text", "prompt")
SIDE_SUFFIXES = (".txt", ".json", ".cls")
MAX_CHARACTERS = 2000  # of one value; SA-1B's masks, a megabyte an image, are no business of a manifest

Readers = Mapping[str, Callable[[], bytes]]
"""Suffix of a side file and what reads it."""


def side_names(name: str) -> list[tuple[str, str]]:
    """(suffix, name) of the side files that an image of this name may have."""
    stem = os.path.splitext(name)[0]
    return [(suffix, stem + suffix) for suffix in SIDE_SUFFIXES]


def read_text(sides: Readers, row: Callable[[], Text] | None = None) -> Text:
    """Caption and values of a sample; what lies nearest to the image wins: side files over a table's row.

    Raises:
        UnusableImageError: a side file or the row is broken.
    """
    texts = {suffix: _decode(suffix, reader()) for suffix, reader in sides.items()}
    values = _parse_json(texts[".json"]) if ".json" in texts else {}
    if ".cls" in texts:
        values.setdefault("cls", texts[".cls"].strip())
    caption = texts.get(".txt")
    if caption is None:
        caption = next((values[key] for key in CAPTION_KEYS if isinstance(values.get(key), str)), None)
    meta = plain_values(values)
    if row is not None:
        row_caption, row_meta = row()
        caption, meta = row_caption if caption is None else caption, row_meta | meta
    return clean_caption(caption), meta


def caption_and_values(row: Mapping[str, Any], keys: tuple[str, ...] = CAPTION_KEYS) -> Text:
    """The same of a table's row: its first caption column, and its other plain values."""
    values = dict(row)
    caption = None
    for key in keys:
        if isinstance(values.get(key), str):
            caption = values.pop(key)
            break
        if isinstance(values.get(key), list):
            # COCO-like: several captions of one picture; the first is the caption, all stay known.
            caption = next((item for item in values[key] if isinstance(item, str)), None)
            break
    return clean_caption(caption), plain_values(values)


def clean_caption(caption: str | None) -> str | None:
    """`caption` without surrounding blanks; None for an empty one.

    Raises:
        UnusableImageError: it is not Unicode text.
    """
    if caption is None:
        return None
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise UnusableImageError("its caption is not valid Unicode") from error
    return caption.strip() or None


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold and is not long: a manifest is read by every step."""
    return {str(name): value for name, value in values.items() if value is not None and _is_short(value)}


def _is_short(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_CHARACTERS
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return value.bit_length() < 1024
    try:
        return len(json.dumps(value, allow_nan=False)) <= MAX_CHARACTERS
    except (TypeError, ValueError, RecursionError):
        return False


def _decode(suffix: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableImageError(f"its {suffix} file is not UTF-8") from error


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableImageError("its .json file is not JSON") from error
    if not isinstance(value, dict):
        raise UnusableImageError("its .json file is not a JSON object")
    return value
