"""`pixart caption`: describe every image of a data set densely (paper 2.4, A.4)."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from pixart_core.artifacts.captions import CaptionLog, CaptionRow, caption_rows, open_caption_log
from pixart_core.artifacts.card import card_for, fingerprint_input, read_card
from pixart_core.artifacts.manifest import ImageRecord, Manifest
from pixart_core.data.caption_flags import FLAGS, caption_flags
from pixart_core.data.images import ImageReader
from pixart_core.data.nouns import caption_statistics
from pixart_core.data.scan import manifest_for
from pixart_core.progress import Progress
from pixart_core.recipe.caption import CaptionStep

__all__ = ["caption_statistics", "run_caption"]


def run_caption(step: CaptionStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Caption the images of `step.data`, training and held-out alike, into `output`.

    Killed and run again, it goes on after the last whole batch. The scan of the data is kept in
    `output/manifest`, which serves as `data` of later steps.

    Returns:
        output, manifest (folder), images and captioned_now (counts), flags (count of each), and
        statistics (of the captions, and of the data's own as "original"), None without TextBlob.

    Raises:
        UserError: data or captioner cannot be used, or `output` holds captions made otherwise.
        PixartError: out of memory or disk; done captions are kept.
    """
    manifest = manifest_for(step, output / "manifest", progress)
    with open_caption_log(
        output,
        settings=_settings(step),
        schedule={"data": fingerprint_input(str(step.data)), "limit": step.limit, "batch": step.batch_size},
        batch_size=step.batch_size,
        ids=[record.id for record in manifest.records],
    ) as log:
        todo = [record for record in manifest.records if record.id not in log.done]
        if todo:
            _caption_all(step, manifest, todo, log, progress)
        details = _finish(step, output, manifest, progress)
    inside = (output / "manifest").is_dir()
    return {
        "output": str(output),
        "manifest": str(output / "manifest") if inside else str(step.data),
        "captioned_now": len(todo),
        **details,
    }


def prompt_for(step: CaptionStep, record: ImageRecord) -> str:
    """The prompt for one image; with `with_original_caption` as the paper's Figure 10 does for LAION."""
    if not step.with_original_caption or not record.caption:
        return step.prompt
    rest = step.prompt[:1].lower() + step.prompt[1:]
    return f'Given the caption of this image "{record.caption}", {rest}'


def _settings(step: CaptionStep) -> dict[str, Any]:
    """What decides a caption; batch size and device only change how fast it comes."""
    chosen = ("captioner", "prompt", "with_original_caption", "max_new_tokens", "dtype")
    weights = fingerprint_input(str(step.captioner))
    return {name: getattr(step, name) for name in chosen} | {"weights": weights}


def _caption_all(
    step: CaptionStep, manifest: Manifest, todo: Sequence[ImageRecord], log: CaptionLog, progress: Progress
) -> None:
    from pixart_core.encoders.captioner import VisionLanguageModel
    from pixart_core.encoders.device import choose_device

    device = choose_device(step.device)
    if device.type == "cpu" and step.dtype != "fp32":
        progress.say(f"captioning on the CPU computes in fp32, not {step.dtype}")
    captioner = VisionLanguageModel.load(
        str(step.captioner), dtype=step.dtype, device=device, max_new_tokens=step.max_new_tokens
    )
    total = len(manifest.records)
    progress.start("caption", total)
    progress.advance("caption", total - len(todo))
    for records, images in _read_ahead(ImageReader(manifest.folder), todo, step.batch_size):
        texts = captioner.describe(images, [prompt_for(step, record) for record in records])
        rows = [
            CaptionRow(record.id, text, caption_flags(text))
            for record, text in zip(records, texts, strict=True)
        ]
        log.append(rows)
        progress.advance("caption", len(rows), note=" ".join(texts[-1].split())[:60])
    progress.finish("caption")


def _read_ahead(
    reader: ImageReader, records: Sequence[ImageRecord], batch_size: int
) -> Iterator[tuple[Sequence[ImageRecord], list[Image.Image]]]:
    """Batches in order; the images of the next one are decoded while the model works on this one."""
    batches = [records[start : start + batch_size] for start in range(0, len(records), batch_size)]

    def read(batch: Sequence[ImageRecord]) -> list[Image.Image]:
        return [reader.read(record) for record in batch]

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, batches[0])
        for batch, following in itertools.zip_longest(batches, batches[1:]):
            images = coming.result()
            if following is not None:
                coming = pool.submit(read, following)
            yield batch, images


def _finish(step: CaptionStep, output: Path, manifest: Manifest, progress: Progress) -> dict[str, Any]:
    """Count, flag and publish; what the card tells of the captions."""
    before = read_card(output)
    card = card_for("captions", step, {})
    if before is not None and before["fingerprint"] == card.fingerprint:
        return dict(before["details"])
    rows = caption_rows(output)
    captions = {record.id: rows[record.id] for record in manifest.records}
    flags = collections.Counter(flag for row in captions.values() for flag in row.flags)
    details: dict[str, Any] = {
        "images": len(captions),
        "flags": {flag: flags[flag] for flag in FLAGS},
        "statistics": None,
    }
    if find_spec("textblob") is None:
        progress.say("noun statistics are left out: pip install 'pixart[nouns]' gives them")
    else:
        originals = [record.caption for record in manifest.records if record.caption]
        details["statistics"] = {
            "captions": caption_statistics(row.caption for row in captions.values()),
            "original": caption_statistics(originals) if originals else None,
        }
    dataclasses.replace(card, details=details).write(output)
    return details
