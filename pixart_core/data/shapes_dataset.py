"""The generated data set of shapes on disk: WebDataset tars and a manifest with ground truth."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from pixart_core.artifacts.card import CARD, card_for
from pixart_core.artifacts.manifest import ImageRecord, image_id, write_manifest
from pixart_core.artifacts.publish import write_bytes, write_text
from pixart_core.data.shapes import (
    LABELS,
    Scene,
    Split,
    draw_scene,
    render_scene,
    scene_caption,
    scene_meta,
)
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.data import ShapesStep

SHARDS = "shards"
PICTURES_PER_SHARD = 2000
MIN_SIDE = 32  # below, a small cross is three pixels wide
MAX_ASPECT = 1.5  # beyond, objects at the top and at the center overlap


def run_shapes(step: ShapesStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Draw `step.count` training and `step.heldout` held-out pictures into `output`.

    Writes `shards/{train,heldout}-00000.tar` (png, txt, json a sample) and the manifest. A killed
    run keeps its complete shards; shards of other options are thrown away.

    Raises:
        UserError: a picture size that shapes cannot be drawn in.
        PixartError: the disk is full.
    """
    for height, width in step.sizes:
        _check_size(height, width)
    counts: dict[Split, int] = {"train": step.count, "heldout": step.heldout}
    card = card_for("manifest", step, {"label_names": list(LABELS), "splits": counts})
    _start_or_resume(output, card.fingerprint)

    progress.start("shapes", step.count + step.heldout)
    records: list[ImageRecord] = []
    for split, count in counts.items():
        for number, first in enumerate(range(0, count, PICTURES_PER_SHARD)):
            indices = range(first, min(first + PICTURES_PER_SHARD, count))
            path = output / SHARDS / f"{split}-{number:05d}.tar"
            shard = [_describe(step, split, index, path.name) for index in indices]
            if not path.exists():
                write_bytes(path, _tar(shard))
            records.extend(record for _, record in shard)
            progress.advance("shapes", len(shard))
    write_manifest(output, records, dropped=[], card=card)
    progress.finish("shapes")
    return {"output": str(output), "images": len(records), "splits": counts}


def _check_size(height: int, width: int) -> None:
    short, long = sorted((height, width))
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise UserError(
            f"sizes: {height}x{width} pixels do not suit shapes; use sides of at least {MIN_SIDE} "
            f"and an aspect ratio of at most {MAX_ASPECT}"
        )


def _start_or_resume(output: Path, fingerprint: str) -> None:
    """Keep the shards in `output` only if a run with these very options made them."""
    mark = output / SHARDS / "options.txt"
    if mark.is_file() and mark.read_text().strip() == fingerprint:
        return
    # The card goes first: without its shards the folder is not complete.
    (output / CARD).unlink(missing_ok=True)
    shutil.rmtree(output / SHARDS, ignore_errors=True)
    write_text(mark, fingerprint + "\n")


def _describe(step: ShapesStep, split: Split, index: int, shard: str) -> tuple[Scene, ImageRecord]:
    height, width = step.sizes[index % len(step.sizes)]
    scene = draw_scene(step.seed, split, index)
    path, member = f"{SHARDS}/{shard}", f"{split}-{index:06d}.png"
    record = ImageRecord(
        id=image_id(path, member),
        path=path,
        member=member,
        width=width,
        height=height,
        caption=scene_caption(scene),
        label=scene.label,
        split=split,
        meta=scene_meta(scene, height, width),
    )
    return scene, record


def _tar(shard: list[tuple[Scene, ImageRecord]]) -> bytes:
    """A WebDataset tar with the picture, the caption and the ground truth of each sample."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for scene, record in shard:
            assert record.member is not None
            stem = record.member.removesuffix(".png")
            _add(tar, f"{stem}.png", _png(scene, record.height, record.width))
            _add(tar, f"{stem}.txt", str(record.caption).encode())
            _add(tar, f"{stem}.json", json.dumps(record.meta).encode())
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner and no time, so that equal runs write equal bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _png(scene: Scene, height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render_scene(scene, height, width)).save(buffer, "png", compress_level=3)
    return buffer.getvalue()
