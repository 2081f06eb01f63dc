"""`pixart caption --stats`: how much captions say, before and after, beside the paper's Table 1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.publish import write_json, write_text
from pixart_core.data.caption_count import CaptionCounter
from pixart_core.data.caption_sources import CaptionSource, open_captions, sample
from pixart_core.data.noun_table import markdown_table
from pixart_core.data.nouns import PAPER_ROWS
from pixart_core.data.token_lengths import TokenLengths, load_token_lengths
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.caption_statistics import CaptionStatisticsStep

KIND = "caption-statistics"


def run_caption_statistics(
    step: CaptionStatisticsStep, output: Path | None, progress: Progress
) -> dict[str, Any]:
    """Count the captions of `step.data` and `step.before`, and publish the result in `output`.

    Nothing is captioned and no picture is read. Memory holds one count a distinct noun, not the captions
    (of folders and tars also their names, as a scan does). A killed run begins anew.

    Returns:
        captions and before (None: there is nothing to compare with), each with label, what
        `CaptionCounts.noun_statistics` gives, without_caption, left_out (with an example), and tokens
        (None: not counted); tagger, tokenizer, max_tokens, limit, reported (the paper's rows), notes,
        markdown (lines of a table to paste) and output.

    Raises:
        UserError: nothing can be read, or the tagger or the tokenizer that was asked for is not there.
        PixartError: the result cannot be written, or a counting process died.
    """
    now = open_captions(str(step.data), step.column)
    before = now.original if step.before is None else open_captions(str(step.before), step.before_column)
    for source in filter(None, (now, before)):
        next(source.read(), None)  # a mistake in the second one is found before the first one is counted
    tokens, notes = _tokens(step)
    counter = CaptionCounter(step.tagger, step.spacy_model, tokens, step.num_proc)
    captions = _count(counter, now, step, tokens, progress)
    if not captions["captions"]:
        raise _no_captions(str(step.data), captions)
    earlier = None if before is None else _count(counter, before, step, tokens, progress)
    if earlier is not None and not earlier["captions"]:
        if step.before is not None:
            raise _no_captions(str(step.before), earlier)
        notes.append("the images had no captions before")
        earlier = None
    result: dict[str, Any] = {
        "captions": captions | {"label": _label(step.column, now)},
        "before": earlier and before and earlier | {"label": _label(step.before_column, before)},
        "tagger": counter.tagger.name,
        "tokenizer": tokens and tokens.name,
        "max_tokens": tokens.max_tokens if tokens else step.max_tokens,
        "limit": step.limit,
        "reported": PAPER_ROWS,
    }
    result["notes"] = [*_notes(result), *notes]
    result["markdown"] = markdown_table(result)
    if output is not None:
        write_json(output / "statistics.json", result)
        write_text(output / "statistics.md", "\n".join(result["markdown"]) + "\n")
        summary = {name: result[name] for name in ("captions", "before", "tagger", "tokenizer")}
        card_for(KIND, step, summary).write(output)
    return result | {"output": None if output is None else str(output)}


def _tokens(step: CaptionStatisticsStep) -> tuple[TokenLengths | None, list[str]]:
    """The tokenizer; where nobody asked for it and it is not at hand, a note instead."""
    if step.tokenizer is None:
        return None, []
    try:
        return load_token_lengths(str(step.tokenizer), step.max_tokens), []
    except UserError as error:
        if "tokenizer" in step.model_fields_set:
            raise UserError(f"tokenizer: {error}") from error
        return None, [f"tokens are not counted: {error}; give tokenizer=FOLDER"]


def _count(
    counter: CaptionCounter,
    source: CaptionSource,
    step: CaptionStatisticsStep,
    tokens: TokenLengths | None,
    progress: Progress,
) -> dict[str, Any]:
    chosen = source if step.limit is None else sample(source, step.limit)
    tally = counter.count(chosen, progress, "count captions")
    return tally.counts.noun_statistics() | {
        "without_caption": tally.without_caption,
        "left_out": tally.left_out,
        "left_out_example": tally.example,
        "tokens": tally.counts.token_statistics(tokens.max_tokens) if tokens else None,
    }


def _no_captions(data: str, counted: Mapping[str, Any]) -> UserError:
    left_out = (
        f", {counted['left_out']} left out: {counted['left_out_example']}" if counted["left_out"] else ""
    )
    return UserError(f"{data}: holds no captions ({counted['without_caption']} without{left_out})")


def _label(column: str | None, source: CaptionSource) -> str:
    return source.name if column is None else f"{source.name} ({column})"


def _notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers has to know."""
    parts = [part for part in (result["captions"], result["before"]) if part is not None]
    numbers = [part["captions"] for part in parts]
    notes = [
        "VN, DN and VN/DN depend on how many captions are counted: the paper's rows are of about 11 "
        "million each (total / average), and of its own tagger (NLTK)"
    ]
    if len(set(numbers)) > 1:
        notes.append(
            f"before and after differ in number ({numbers[1]:,} and {numbers[0]:,}): "
            f"--limit {min(numbers)} compares samples of one size"
        )
    if result["limit"] is not None and max(numbers) == result["limit"]:
        notes.append("a sample, the same whenever it is taken: chosen by a hash of the ids")
    for part in parts:
        if part["left_out"]:
            example = part["left_out_example"]
            notes.append(f"{part['label']}: {part['left_out']:,} left out, e.g. {example}")
    return notes
