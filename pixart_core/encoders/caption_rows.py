"""From images to rows: what a captioner is shown, what it said, and asking again where that is no good."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from pixart_core.artifacts.captions import CaptionRow
from pixart_core.artifacts.manifest import ImageRecord
from pixart_core.data.caption_flags import caption_flags
from pixart_core.data.images import ImageReader
from pixart_core.recipe.caption import CaptionStep
from pixart_core.seeding import derive_seed


@dataclasses.dataclass(frozen=True)
class Description:
    """The words of a captioner.

    Attributes:
        cut: it had more to say than `max_new_tokens`.
    """

    text: str
    cut: bool = False


PromptOf = Callable[[ImageRecord], str]
AskAgain = Callable[[Sequence[int], Sequence[int]], Sequence[Description]]
"""(positions in the batch, seed of each) -> descriptions drawn by sampling."""


def prompt_for(step: CaptionStep, record: ImageRecord) -> str:
    """What is asked about one image; with `with_original_caption` as the paper's Figure 10 does for LAION."""
    caption = " ".join((record.caption or "").split()) if step.with_original_caption else ""
    if not caption:
        return step.prompt
    rest = step.prompt[:1].lower() + step.prompt[1:]
    # Half an emoji, cut from JSON, has no UTF-8.
    return f'Given the caption of this image "{caption}", {rest}'.encode("utf-8", "replace").decode()


def read_scaled(reader: ImageReader, record: ImageRecord, max_side: int | None) -> Image.Image:
    """The image, scaled down until no side is longer than `max_side` pixels.

    Raises:
        UserError: it is gone or damaged since the manifest was made.
    """
    image = reader.read(record)
    if max_side is not None and max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def rows_with_retries(
    step: CaptionStep, ids: Sequence[str], first: Sequence[Description], ask_again: AskAgain
) -> list[CaptionRow]:
    """The rows of a batch; flagged ones are asked for again, at most `retry_flagged` times.

    The seeds derive from (seed, image, attempt), so that nothing else decides what an image gets. Of
    several answers the one with the fewest flags is kept, of equals the first.
    """
    rows = [_row(row_id, answer, 0) for row_id, answer in zip(ids, first, strict=True)]
    for attempt in range(1, step.retry_flagged + 1):
        again = [number for number, row in enumerate(rows) if _faults(step, row)]
        if not again:
            break
        seeds = [derive_seed(step.seed, "caption", ids[number], attempt) for number in again]
        for number, answer in zip(again, ask_again(again, seeds), strict=True):
            row = _row(ids[number], answer, attempt)
            if _faults(step, row) < _faults(step, rows[number]):
                rows[number] = row
    return rows


def failed_row(record: ImageRecord, error: Exception, folder: Path) -> CaptionRow:
    """The row of an image that no caption can be had for; `folder` is that of its manifest."""
    reason = str(error)
    for place in (str(folder / record.path), record.path):  # where it lies is told beside the reason
        reason = reason.removeprefix(place).removeprefix(f", {record.member}").removeprefix(": ")
    return CaptionRow(record.id, "", ("failed",), excluded=True, reason=reason)


def _row(row_id: str, answer: Description, attempt: int) -> CaptionRow:
    text = answer.text.encode("utf-8", "replace").decode()
    return CaptionRow(row_id, text, caption_flags(text, cut=answer.cut), attempt)


def _faults(step: CaptionStep, row: CaptionRow) -> int:
    return len(set(row.flags).intersection(step.retry_flags))
