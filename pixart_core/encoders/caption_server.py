"""Captions by a server: a bounded number of requests under way, each answer kept as soon as it is there."""

import contextlib
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pixart_core.artifacts.captions import CaptionRow
from pixart_core.artifacts.manifest import ImageRecord
from pixart_core.data.images import ImageReader
from pixart_core.encoders.caption_rows import (
    Description,
    PromptOf,
    failed_row,
    read_scaled,
    rows_with_retries,
)  # fmt: skip
from pixart_core.encoders.chat_server import ChatServer, RefusedError, request_fields
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.caption import CaptionStep

_Answer = CaptionRow | BaseException | None  # None: this thread has no more to do

DEFAULT_MAX_SIDE = 1024  # px; vision models look at less, and the network carries it


def server_rows(
    step: CaptionStep,
    records: Iterable[ImageRecord],
    reader: ImageReader,
    prompt_of: PromptOf,
    progress: Progress,
) -> Iterator[list[CaptionRow]]:
    """The rows of `records`, each once its answer is there: at most `concurrency` requests at a time.

    An image that the server refuses, or that cannot be read any more, gives a failed row.

    Raises:
        UserError: the server cannot be used (address, key, model), said before any image is sent if possible.
        PixartError: it stopped answering.
    """
    server = _connect(step, progress)
    waiting = iter(records)
    lock = threading.Lock()
    # Bounded, so that a slow disk holds the threads up instead of letting answers pile up unwritten.
    answers = queue.Queue[_Answer](2 * step.concurrency)

    def work() -> None:
        try:
            while True:
                with lock:
                    record = next(waiting, None)
                if record is None:
                    return answers.put(None)
                answers.put(_ask(step, server, record, reader, prompt_of))
        except BaseException as error:  # handed to the thread that started us
            answers.put(error)

    # Daemons, so that Ctrl-C need not wait for a server that thinks.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(step.concurrency)]
    for thread in threads:
        thread.start()
    working = len(threads)
    try:
        while working:
            rows, error, ended = _drain(answers)
            working -= ended
            if rows:
                yield rows
            if error is not None:
                raise error
    finally:
        with lock:
            waiting = iter(())
        server.stop()
        with contextlib.suppress(queue.Empty):  # room for what each thread still has to put
            while True:
                answers.get_nowait()


def _drain(answers: "queue.Queue[_Answer]") -> tuple[list[CaptionRow], BaseException | None, int]:
    """(all answers that are there, the first error among them, threads that ended)."""
    items = [answers.get()]
    with contextlib.suppress(queue.Empty):
        while True:
            items.append(answers.get_nowait())
    rows = [item for item in items if isinstance(item, CaptionRow)]
    errors = [item for item in items if isinstance(item, BaseException)]
    return rows, errors[0] if errors else None, items.count(None)


def _ask(
    step: CaptionStep, server: ChatServer, record: ImageRecord, reader: ImageReader, prompt_of: PromptOf
) -> CaptionRow:
    try:
        image = read_scaled(reader, record, step.max_image_side or DEFAULT_MAX_SIDE)
    except UserError as error:
        return failed_row(record, error, reader.folder)
    fields = request_fields(
        image, prompt_of(record), max_new_tokens=step.max_new_tokens, image_format=step.api_image_format
    )

    temperature = step.retry_temperature

    def again(numbers: Sequence[int], seeds: Sequence[int]) -> list[Description]:
        return [
            server.describe(_with_extra(step, fields | {"temperature": temperature, "seed": seed % 2**31}))
            for seed in seeds
        ]

    try:
        return rows_with_retries(step, [record.id], [server.describe(_with_extra(step, fields))], again)[0]
    except RefusedError as error:
        return failed_row(record, error, reader.folder)


def _with_extra(step: CaptionStep, fields: Mapping[str, Any]) -> dict[str, Any]:
    # The user's fields win, except over what sampling needs: otherwise a retry would get the same answer.
    merged = step.api_extra | dict(fields) if "seed" in fields else dict(fields) | step.api_extra
    return {name: value for name, value in merged.items() if step.api_extra.get(name, value) is not None}


def _connect(step: CaptionStep, progress: Progress) -> ChatServer:
    assert step.api_base is not None
    key = os.environ.get(step.api_key_env, "").strip()
    if not key and step.api_key_env != CaptionStep.model_fields["api_key_env"].default:
        raise UserError(f"api_key_env: the environment has no variable {step.api_key_env}")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"api_key_env: {step.api_key_env} holds characters that no header can carry")
    server = ChatServer(
        step.api_base, str(step.captioner), key or None, timeout=step.api_timeout, retries=step.api_retries,
        backoff=step.api_backoff,
    )  # fmt: skip
    server.check()
    told = f"the key in {step.api_key_env}" if key else "no key"
    progress.say(f"asking {step.api_base} for {step.captioner}, with {told}")
    return server
