"""Validation images for the page: the newest of every prompt, and how they came about."""

import base64
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pixart_core.artifacts.samples import SAMPLES
from pixart_core.training.validation_images import drawn_steps

NEWEST = 24  # pictures of the newest step on the page
NEWEST_SIDE, STRIP_SIDE = 320, 128  # pixels; larger pictures are embedded smaller
STRIP_STEPS, STRIP_ROWS = 12, 12
CRISP_BELOW = 160  # pixels; smaller pictures are enlarged without smoothing


def newest_images(output: Path) -> dict[str, Any] | None:
    """Pictures of the newest step, with links to their files; None if there are none."""
    steps = drawn_steps(output)
    if not steps:
        return None
    number, folder = max(steps.items())
    records = _records(folder)
    images = [
        _picture(folder / record["file"], NEWEST_SIDE)
        | {
            "prompt": record["prompt"],
            "seed": record["seed"],
            "link": f"{folder.parent.name}/{folder.name}/{record['file']}",
        }
        for record in records[:NEWEST]
    ]
    return {
        "step": number,
        "folder": f"{folder.parent.name}/{folder.name}",
        "images": images,
        "left_out": max(0, len(records) - NEWEST),
    }


def strips(output: Path) -> dict[str, Any] | None:
    """A row a prompt and seed, a column a step, the newest first; None before there are two steps."""
    steps = drawn_steps(output)
    chosen = spread(sorted(steps, reverse=True), STRIP_STEPS)
    if len(chosen) < 2:
        return None
    pictures = {
        number: {(row["prompt"], row["seed"]): row["file"] for row in _records(steps[number])}
        for number in chosen
    }
    rows = []
    for prompt, seed in list(pictures[chosen[0]])[:STRIP_ROWS]:
        files = [(number, pictures[number].get((prompt, seed))) for number in chosen]
        shown = [
            _picture(steps[number] / file, STRIP_SIDE) | {"step": number} if file else None
            for number, file in files
        ]
        rows.append({"prompt": prompt, "images": shown})
    return {"steps": chosen, "rows": rows}


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of `items`, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return [*items]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SAMPLES).read_text(encoding="utf-8").splitlines() if line]


def _picture(file: Path, side: int) -> dict[str, Any]:
    return dict(zip(("url", "crisp"), _embedded(file, side), strict=True))


@functools.lru_cache(maxsize=1024)
def _embedded(file: Path, side: int) -> tuple[str, bool]:
    """A picture as a data URL, PNG when small, else JPEG; whether it is to be enlarged without smoothing."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    crisp = max(image.size) < CRISP_BELOW
    buffer = io.BytesIO()
    if max(image.size) <= side and crisp:
        image.save(buffer, "png", optimize=True)
        kind = "png"
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(buffer, "jpeg", quality=86)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", crisp
