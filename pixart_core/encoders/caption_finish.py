"""The end of a captioning run: count tokens and flags, decide what is left out, publish."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pixart_core.artifacts.caption_work import CaptionWork
from pixart_core.artifacts.captions import CAPTIONS, CaptionRow, rows_of
from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.manifest import Manifest
from pixart_core.data.caption_flags import FLAGS
from pixart_core.data.nouns import caption_statistics
from pixart_core.data.token_lengths import TokenLengths, load_token_lengths
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.caption import CaptionStep
from pixart_core.recipe.features import ExtractFeaturesStep

_CHUNK = 1000  # captions at a time, for the tokenizer
# A second of one core counts about 2,500 dense captions; for many, `pixart caption --stats` uses every core.
_STATISTICS_LIMIT = 50_000


def publish_captions(step: CaptionStep, work: CaptionWork, manifest: Manifest, progress: Progress) -> None:
    """Write the rows in the order of the manifest, and the card.

    The card's details: images, failed and excluded (counts), flags (count of each; None for too_long if
    there is no tokenizer to count with), tokenizer (its name), and statistics (noun statistics of the
    captions, and of the data's own as "original" if it has any; None without a tagger or for very many).
    Captions of images that are not in the manifest (of data that was larger once) are kept, uncounted.
    """
    tokens = load_tokens(step, progress)
    counts: collections.Counter[str] = collections.Counter()

    def place_of(row_id: str) -> str:
        position = work.position.of(row_id)
        if position is None:
            return "no longer in the data"
        record = manifest.records[position]
        return record.path if record.member is None else f"{record.path}, {record.member}"

    progress.start("publish", len(manifest.records) + len(work.others))
    rows = _counted(_judged(step, work.rows(), tokens), len(manifest.records), counts, progress)
    work.publish(rows, place_of)
    progress.finish("publish")
    details: dict[str, Any] = {
        "images": len(manifest.records),
        "failed": counts["failed"],
        "excluded": counts["excluded"],
        "flags": {flag: counts[flag] for flag in FLAGS if flag != "failed"},
        "tokenizer": None if tokens is None else tokens.name,
        "statistics": _statistics(work.folder, manifest, progress),
    }
    if tokens is None:
        details["flags"]["too_long"] = None
    card_for("captions", step, details).write(work.folder)


def load_tokens(step: CaptionStep, progress: Progress) -> TokenLengths | None:
    """What counts tokens: `tokenizer`, else T5's; None, and a note, if that cannot be had.

    Raises:
        UserError: `tokenizer` is given and cannot be loaded.
    """
    default = str(ExtractFeaturesStep.model_fields["text_encoder"].default)
    try:
        return load_token_lengths(default if step.tokenizer is None else str(step.tokenizer), step.max_tokens)
    except UserError as error:
        if step.tokenizer is not None:
            raise
        progress.say(f"captions that are too long for the text encoder are not flagged: {error}")
        return None


def _judged(
    step: CaptionStep, rows: Iterator[CaptionRow], tokens: TokenLengths | None
) -> Iterator[CaptionRow]:
    """`rows` with tokens counted, `too_long` flagged, and the excluded ones marked."""
    while chunk := list(itertools.islice(rows, _CHUNK)):
        lengths: list[int | None] = [None] * len(chunk)
        if tokens is not None:
            lengths = list(tokens.of([row.caption for row in chunk]))
        for row, length in zip(chunk, lengths, strict=True):
            flags = [flag for flag in row.flags if flag != "too_long"]
            if tokens is not None and length is not None and length > tokens.max_tokens:
                flags.append("too_long")
            excluded = row.failed or not set(flags).isdisjoint(step.exclude_flagged)
            yield dataclasses.replace(row, flags=tuple(flags), tokens=length, excluded=excluded)


def _counted(
    rows: Iterable[CaptionRow], first: int, counts: collections.Counter[str], progress: Progress
) -> Iterator[CaptionRow]:
    for number, row in enumerate(rows):
        if number < first:
            counts.update(row.flags)
            counts["excluded"] += row.excluded
        progress.advance("publish")
        yield row


def _statistics(folder: Path, manifest: Manifest, progress: Progress) -> dict[str, Any] | None:
    if len(manifest.records) > _STATISTICS_LIMIT:
        progress.say(f"noun statistics of so many captions: pixart caption --stats --data {folder}")
        return None
    ids = {record.id for record in manifest.records}
    kept = (row.caption for row, _ in rows_of(folder / CAPTIONS) if row.id in ids and not row.excluded)
    originals = [record.caption for record in manifest.records if record.caption]
    try:
        counted = {"captions": caption_statistics(kept)}
        if originals:
            counted["original"] = caption_statistics(originals)
    except UserError as error:
        progress.say(f"noun statistics are left out: {error}")
        return None
    # The paper's rows stand beside them in `pixart caption --stats`.
    return {name: {k: v for k, v in each.items() if k != "reported"} for name, each in counted.items()}
