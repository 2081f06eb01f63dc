"""Captions by a model on this machine: batches of similar length, read ahead while the model works."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from pixart_core.artifacts.caption_plan import Positions
from pixart_core.artifacts.captions import CaptionRow
from pixart_core.artifacts.manifest import ImageRecord, Manifest
from pixart_core.data.images import ImageReader
from pixart_core.encoders.caption_rows import (
    Description,
    PromptOf,
    failed_row,
    read_scaled,
    rows_with_retries,
)  # fmt: skip
from pixart_core.encoders.captioner import (
    VisionLanguageModel,
    has_chat_template,
    load_processor,
    prompt_lengths,
)  # fmt: skip
from pixart_core.encoders.device import choose_device
from pixart_core.errors import UserError
from pixart_core.launch import Processes
from pixart_core.progress import Progress
from pixart_core.recipe.caption import CaptionStep

_CHUNK = 10_000  # prompts at a time


def order_by_length(
    step: CaptionStep, manifest: Manifest, positions: Positions, prompt_of: PromptOf
) -> Positions:
    """`positions` in the manifest by the length of what the model will read, the longest first.

    Batches cut from it hold inputs of similar length, and one that does not fit into the memory shows at
    once, not after days. Equals stay in order.
    """
    if not len(positions):
        return positions
    processor = load_processor(str(step.captioner))
    lengths: list[int] = []
    for start in range(0, len(positions), _CHUNK):
        records = [manifest.records[int(position)] for position in positions[start : start + _CHUNK]]
        sizes = [(record.height, record.width) for record in records]
        lengths += prompt_lengths(processor, [prompt_of(record) for record in records], sizes)
    return positions[np.argsort(-np.array(lengths), kind="stable")]


def local_rows(
    step: CaptionStep,
    batches: Iterable[Sequence[ImageRecord]],
    reader: ImageReader,
    prompt_of: PromptOf,
    processes: Processes,
    progress: Progress,
) -> Iterator[list[CaptionRow]]:
    """The rows of one batch after the other, with the model loaded here.

    An image that cannot be read any more gives a failed row; the others of its batch go on without it.
    """
    model = _load(step, processes, progress)
    with ThreadPoolExecutor(1) as pool:

        def prepare(batch: Sequence[ImageRecord]) -> "_Batch":
            return _Batch(model, step, batch, reader, prompt_of)

        coming: Future[_Batch] | None = None
        for records in batches:
            batch, coming = coming, pool.submit(prepare, records)
            if batch is not None:
                yield batch.result().rows()
        if coming is not None:
            yield coming.result().rows()


class _Batch:
    """A batch that is read and made into tensors, and what becomes of it."""

    def __init__(
        self,
        model: VisionLanguageModel,
        step: CaptionStep,
        records: Sequence[ImageRecord],
        reader: ImageReader,
        prompt_of: PromptOf,
    ) -> None:
        self._model, self._step = model, step
        self._failed: list[CaptionRow] = []
        self._ids: list[str] = []
        self._images: list[Image.Image] = []
        self._prompts: list[str] = []
        for record in records:
            try:
                self._images.append(read_scaled(reader, record, step.max_image_side))
            except UserError as error:
                self._failed.append(failed_row(record, error, reader.folder))
            else:
                self._ids.append(record.id)
                self._prompts.append(prompt_of(record))
        self._inputs: Any = model.prepare(self._images, self._prompts) if self._images else None

    def rows(self) -> list[CaptionRow]:
        if not self._images:
            return self._failed
        first = self._model.describe(self._images, self._prompts, inputs=self._inputs)
        return rows_with_retries(self._step, self._ids, first, self._again) + self._failed

    def _again(self, numbers: Sequence[int], seeds: Sequence[int]) -> Sequence[Description]:
        images, prompts = [self._images[n] for n in numbers], [self._prompts[n] for n in numbers]
        return self._model.describe(images, prompts, seeds, self._step.retry_temperature)


def _load(step: CaptionStep, processes: Processes, progress: Progress) -> VisionLanguageModel:
    device = choose_device(step.device, processes.local_rank)
    if device.type == "cpu" and step.dtype != "fp32":
        progress.say(f"captioning on the CPU computes in fp32, not {step.dtype}")
    model = VisionLanguageModel.load(
        str(step.captioner), dtype=step.dtype, device=device, max_new_tokens=step.max_new_tokens,
        quantization=step.quantization, say=progress.say,
    )  # fmt: skip
    if not has_chat_template(model.processor):
        asked = model.format_prompt(step.prompt)
        progress.say(f"{step.captioner} has no chat template; it is asked {asked!r}")
    return model
