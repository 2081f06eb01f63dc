"""Tokens of all prompts of a sample set, encoded before anything is drawn; then the text encoder is gone."""

import ctypes
import errno
import gc
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.artifacts.samples import SampleRecord
from pixart_core.encoders.text import TextBatch, TextEncoder
from pixart_core.errors import PixartError
from pixart_core.progress import Progress

ENCODE_BATCH = 32
# Tokens of more bytes than this are kept in a file: 30,000 long prompts of T5-XXL are 30 GB in bf16.
MOST_IN_MEMORY = 2**30


class PromptTokens:
    """Tokens by text, in memory or in a file that has no name and so goes with the process, whatever ends it.

    Attributes:
        encoder_hash: of the text encoder's weights as they were stored.
    """

    def __init__(self, encoder_hash: str, lengths: Mapping[str, int], width: int, dtype: torch.dtype) -> None:
        self.encoder_hash = encoder_hash
        self._lengths = dict(lengths)
        self._width = width
        self._dtype = dtype
        self._row_bytes = width * dtype.itemsize
        self._starts, self._bytes = {}, 0
        for text, length in lengths.items():
            self._starts[text] = self._bytes
            self._bytes += length * self._row_bytes
        self._kept: dict[str, Tensor] = {}
        self._file: IO[bytes] | None = None

    def keep_in_file(self, folder: Path) -> None:
        """Take the room for all tokens in `folder`, before any is computed.

        Raises:
            PixartError: the disk is too full, or cannot be written.
        """
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with this object
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, self._bytes)
        except OSError as error:
            raise self._failed(folder, error) from error

    @property
    def bytes(self) -> int:
        """Of all tokens together."""
        return self._bytes

    def put(self, text: str, states: Float[Tensor, "l d"]) -> None:
        """Keep the tokens of a text that `lengths` named."""
        assert states.shape == (self._lengths[text], self._width), text
        states = states.to(self._dtype)  # nothing is lost: the text encoder computed in that type
        if self._file is None:
            self._kept[text] = states.clone()
            return
        data = states.contiguous().view(torch.uint8).numpy().reshape(-1).data
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], self._starts[text] + written)
        except OSError as error:
            raise self._failed("the sample set", error) from error

    def __getitem__(self, text: str) -> Float[Tensor, "l d"]:
        """The tokens of a text, float32 on the CPU."""
        if self._file is None:
            return self._kept[text].float()
        size = self._lengths[text] * self._row_bytes
        data = bytearray(os.pread(self._file.fileno(), size, self._starts[text]))
        assert len(data) == size, text
        return torch.frombuffer(data, dtype=self._dtype).view(-1, self._width).float()

    def _failed(self, where: object, error: OSError) -> PixartError:
        reason = error.strerror or error
        room = f"{self._bytes / 1e9:.3g} GB of room for"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return PixartError(
            f"cannot keep the prompts' tokens beside {where} ({reason})"
            + (f": make {room} them, or draw fewer prompts at a time" if full else "")
        )


def texts_of(batches: Iterable[Sequence[SampleRecord]], *, empty_is_learned: bool) -> list[str]:
    """The distinct prompts and negative prompts, in the order in which they are drawn.

    Args:
        empty_is_learned: whether a learned embedding stands for a negative prompt that is blank.
    """
    texts: dict[str, None] = {}
    for batch in batches:
        for record in batch:
            negative = record.negative_prompt or ""
            if negative.strip() or not empty_is_learned:
                texts[negative] = None
            texts[record.prompt] = None
    return list(texts)


def encode_prompts(
    texts: Sequence[str],
    needed: Collection[str],
    load: Callable[[], TextEncoder],
    *,
    max_tokens: int,
    dtype: torch.dtype,
    folder: Path,
    progress: Progress,
) -> PromptTokens:
    """Encode each of `needed` once; the text encoder is freed before this returns.

    Args:
        texts: of the whole set, without repetition. They alone decide which share a batch, so that a text has
            the same tokens, bit for bit, whichever are `needed` by this process or this sitting.
        load: gives the text encoder.
        dtype: that it computes in.
        folder: on whose disk the tokens may lie if they are many.

    Raises:
        UserError: the encoder computes values that are not finite; names the text.
        PixartError: no room for the tokens on the disk.
    """
    needed = set(needed)
    encoder = load()
    chunks = [texts[start : start + ENCODE_BATCH] for start in range(0, len(texts), ENCODE_BATCH)]
    mine = [encoder.batches(chunk, max_tokens, ENCODE_BATCH)[0] for chunk in chunks if needed & set(chunk)]
    lengths = {text: len(ids) for batch in mine for text, ids in _each(batch) if text in needed}
    tokens = PromptTokens(encoder.hash, lengths, encoder.channels, dtype)
    if tokens.bytes > MOST_IN_MEMORY:
        tokens.keep_in_file(folder)
    task = "encode prompts"
    progress.start(task, len(lengths))
    for batch in mine:
        found = [
            (text, states)
            for text, states in zip(batch.texts, encoder.encode_batch(batch), strict=True)
            if text in needed
        ]
        for text, states in found:
            tokens.put(text, states)
        progress.advance(task, len(found))
    progress.finish(task)
    del encoder
    free()
    return tokens


def _each(batch: TextBatch) -> Iterable[tuple[str, Sequence[int]]]:
    return zip(batch.texts, batch.ids, strict=True)


def free() -> None:
    """Give back the memory of what nobody refers to any more, on the GPU too."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc, which keeps much of what is freed
    if trim is not None:
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
