"""`pixart caption`: describe every image of a data set densely (paper 2.4, A.4)."""

import array
import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixart_core.artifacts.caption_parts import PARTS, locked_captions, open_part
from pixart_core.artifacts.caption_work import CaptionWork, Positions, clear_parts, read_todo
from pixart_core.artifacts.captions import CaptionRow
from pixart_core.artifacts.card import card_for, fingerprint_input, read_card
from pixart_core.artifacts.image_records import digest_number
from pixart_core.artifacts.manifest import ImageRecord, Manifest
from pixart_core.artifacts.manifest_guard import manifest_kept_on_failure
from pixart_core.data.images import ImageReader
from pixart_core.data.scan import manifest_for
from pixart_core.encoders.caption_finish import load_tokens, publish_captions
from pixart_core.encoders.caption_rows import prompt_for
from pixart_core.errors import PixartError, UserError
from pixart_core.launch import Processes, connect
from pixart_core.progress import Progress
from pixart_core.recipe.caption import CaptionStep

_FAILED_IN_A_ROW = 20  # so many without a caption in between are no images' fault


def run_caption(step: CaptionStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Caption the images of `step.data`, training and held-out alike, into `output`.

    Killed and run again, also with another number of processes, it goes on after the batches that are
    done and ends with the same bytes. Images that failed (damaged since the scan, refused by the server)
    are tried once more by each later run. The scan of the data is kept in `output/manifest`, which serves
    as `data` of later steps.

    Returns:
        output, manifest (folder), captioned_now (count), and what `publish_captions` tells.

    Raises:
        UserError: data or captioner cannot be used, or `output` holds captions made otherwise.
        PixartError: out of memory or disk, or the server is gone; done captions are kept.
    """
    processes = connect()
    if not processes.first:
        manifest = manifest_for(step, output / "manifest", progress, processes)
        processes.wait()  # for the plan
        caption_share(step, output, manifest, processes, progress)
        processes.wait()
        processes.wait()
        return _result(step, output, 0)
    with locked_captions(output):
        found = (output / "manifest").exists()
        with manifest_kept_on_failure(output / "manifest"):
            manifest = manifest_for(step, output / "manifest", progress, processes)
            work = _begin(step, output, manifest, progress, found)  # refuses other pictures
        processes.wait()
        todo = len(read_todo(output).positions)
        caption_share(step, output, manifest, processes, progress)
        processes.wait()
        if work is not None:
            if todo:
                work.refresh()
            publish_captions(step, work, manifest, progress)
            clear_parts(output)
        processes.wait()
    return _result(step, output, todo)


def caption_share(
    step: CaptionStep, output: Path, manifest: Manifest, processes: Processes, progress: Progress
) -> None:
    """Make the batches of this process, of those that the first one planned."""
    todo = read_todo(output)
    mine = processes.share(range(len(todo)))
    if not mine:
        return
    count = sum(len(todo[number]) for number in mine)
    if processes.count > 1:
        progress.say(f"{processes.count} processes; this one captions {count} images")
    done = failed = in_a_row = 0
    progress.start("caption", count)
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(open_part(output, processes.rank))
        digests: dict[str, str | None] = {}  # of the images whose rows are being made
        records = (
            _noted([manifest.records[position] for position in todo[number]], digests) for number in mine
        )
        source = _rows(step, records, ImageReader(manifest.folder), processes, progress)
        for rows in stack.enter_context(contextlib.closing(source)):
            part.append([_with_digest(row, digests.pop(row.id)) for row in rows])
            for row in rows:
                failed, in_a_row = (failed + 1, in_a_row + 1) if row.failed else (failed, 0)
            done += len(rows)
            last = next((row for row in reversed(rows) if row.failed), None)
            too_many = failed > step.max_bad_fraction * len(manifest.records)
            if last is not None and (too_many or in_a_row >= _FAILED_IN_A_ROW):
                raise PixartError(_too_many(step, manifest, last, done, failed))
            progress.advance("caption", len(rows), note=" ".join(rows[-1].caption.split())[:60])
    progress.finish("caption")


def _noted(records: list[ImageRecord], digests: dict[str, str | None]) -> list[ImageRecord]:
    digests.update((record.id, record.digest) for record in records)
    return records


def _with_digest(row: CaptionRow, digest: str | None) -> CaptionRow:
    # An image that failed may be mended: any picture in its place is welcome.
    return row if row.failed else dataclasses.replace(row, digest=digest)


def _rows(
    step: CaptionStep,
    batches: Iterable[Sequence[ImageRecord]],
    reader: ImageReader,
    processes: Processes,
    progress: Progress,
) -> Generator[list[CaptionRow]]:
    prompt_of = functools.partial(prompt_for, step)
    if step.api_base is not None:
        from pixart_core.encoders.caption_server import server_rows

        yield from server_rows(step, (record for (record,) in batches), reader, prompt_of, progress)
    else:
        from pixart_core.encoders.caption_local import local_rows

        yield from local_rows(step, batches, reader, prompt_of, processes, progress)


def _begin(
    step: CaptionStep, output: Path, manifest: Manifest, progress: Progress, scanned_before: bool
) -> CaptionWork | None:
    """Plan what is to do, for all processes; None where all is done and published.

    Raises:
        UserError: `output` holds captions made otherwise, or of other pictures.
    """
    card = read_card(output)
    finished = card is not None and card["fingerprint"] == card_for("captions", step, {}).fingerprint
    if finished and card is not None and not card["details"].get("failed"):
        clear_parts(output)
        return None
    if step.tokenizer is not None:
        load_tokens(step, progress)  # a mistake shall show now, not after days
    digests = array.array("Q")

    def ids() -> Iterator[str]:
        for record in manifest.records:
            digests.append(digest_number(record.digest))
            yield record.id

    work = CaptionWork(output, _settings(step), ids(), digests)
    if work.changed.any():
        if not scanned_before:  # a manifest of other data says later what the captions are of
            shutil.rmtree(output / "manifest", ignore_errors=True)
        with contextlib.suppress(OSError):
            (output / PARTS).rmdir()  # where it is empty, all was finished
        raise UserError(_changed(work, output, manifest))
    if work.complete:
        return work

    def order(missing: Positions) -> Positions:
        if step.api_base is not None:
            return missing
        from pixart_core.encoders.caption_local import order_by_length

        return order_by_length(step, manifest, missing, functools.partial(prompt_for, step))

    work.plan(1 if step.api_base is not None else step.batch_size, order)
    return work


def _changed(work: CaptionWork, output: Path, manifest: Manifest) -> str:
    changed = np.flatnonzero(work.changed)
    record = manifest.records[int(changed[0])]
    place = record.path if record.member is None else f"{record.path}, {record.member}"
    return (
        f"{len(changed)} of {len(manifest.records)} images are not those that {output} holds captions of, "
        f"e.g. {place}; choose another output, or restore the data"
    )


def _settings(step: CaptionStep) -> dict[str, Any]:
    """What decides a caption; batch size, device and the server's address only change how fast it comes."""
    chosen = {"captioner", "prompt", "with_original_caption", "max_new_tokens", "max_image_side"}
    if step.retry_flagged:
        chosen |= {"retry_flagged", "retry_flags", "retry_temperature", "seed"}
    if step.api_base is not None:
        chosen |= {"api_extra", "api_image_format"}
        return step.model_dump(mode="json", include=chosen) | {"backend": "server"}
    weights = fingerprint_input(str(step.captioner))
    chosen |= {"dtype", "quantization"}
    return step.model_dump(mode="json", include=chosen) | {"backend": "transformers", "weights": weights}


def _too_many(step: CaptionStep, manifest: Manifest, row: CaptionRow, done: int, failed: int) -> str:
    path = next(record.path for record in manifest.records if record.id == row.id)
    return (
        f"{failed} of {done} images got no caption, the last one {path}: {row.reason}; mend "
        f"that or raise max_bad_fraction ({step.max_bad_fraction:g}) and run again: what is captioned is kept"
    )


def _result(step: CaptionStep, output: Path, todo: int) -> dict[str, Any]:
    card = read_card(output)
    inside = (output / "manifest").is_dir()
    return {
        "output": str(output),
        "manifest": str(output / "manifest") if inside else str(step.data),
        "captioned_now": todo,
        **(card["details"] if card is not None else {}),
    }
