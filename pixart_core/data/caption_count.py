"""Counting captions in several processes; the counts are the same for any number of them."""

import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

from pixart_core.data import count_process
from pixart_core.data.caption_sources import CaptionSource, has_text
from pixart_core.data.nouns import CaptionCounts
from pixart_core.data.taggers import Kind, load_tagger
from pixart_core.data.token_lengths import TokenLengths
from pixart_core.errors import PixartError
from pixart_core.progress import Progress

_CHUNK_CAPTIONS = 2000
_CHUNK_CHARACTERS = 500_000
_ALONE = 20  # chunks that are counted before there are processes
_AHEAD = 3  # chunks in the queue for each process


@dataclass
class Tally:
    """What was counted, and what could not be.

    Attributes:
        without_caption: rows and images that have none.
        left_out: captions that cannot be read, or that captioning excluded.
        example: one of those, and why.
    """

    counts: CaptionCounts = field(default_factory=CaptionCounts)
    without_caption: int = 0
    left_out: int = 0
    example: str | None = None


class CaptionCounter:
    """A tagger and a tokenizer, here and, for more than a few captions, in processes of their own."""

    def __init__(
        self, tagger: Kind, spacy_model: str, tokens: TokenLengths | None, num_proc: int | None = None
    ) -> None:
        """Load the tagger.

        Args:
            tagger, spacy_model: as for `load_tagger`.
            tokens: None: tokens are not counted.
            num_proc: processes; default: one a core that may be used.

        Raises:
            UserError: the tagger is not there.
        """
        self._recipe = (tagger, spacy_model, tokens)
        self.tagger = load_tagger(tagger, spacy_model)
        self._tokens = tokens
        self._processes = num_proc or len(os.sched_getaffinity(0))

    def count(self, source: CaptionSource, progress: Progress, task: str) -> Tally:
        """Read the captions of `source` once and count them; memory holds counts and a few chunks.

        Raises:
            UserError: a caption cannot be read and `source` does not go on after it.
            PixartError: a process died.
        """
        tally = Tally()
        progress.start(task, None)
        with contextlib.closing(self._counted(_chunks(source, tally))) as counted:
            for counts in counted:
                tally.counts.add(counts)
                progress.advance(task, counts.captions)
        progress.finish(task)
        return tally

    def _counted(self, chunks: Iterator[list[str]]) -> Generator[CaptionCounts, None, None]:
        """The counts of each chunk, in any order."""
        # Starting processes takes as long as counting the first few megabytes.
        alone = _ALONE if self._processes > 1 else None
        for chunk in itertools.islice(chunks, alone):
            yield CaptionCounts.of(chunk, self.tagger, self._tokens)
        rest = list(itertools.islice(chunks, 1))
        if rest:
            yield from self._counted_in_processes(itertools.chain(rest, chunks))

    def _counted_in_processes(self, chunks: Iterator[list[str]]) -> Iterator[CaptionCounts]:
        # Not fork: the threads of progress bars and tokenizers would be torn.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self._processes, context, count_process.begin, self._recipe)
        try:
            waiting: set[Future[CaptionCounts]] = set()
            for chunk in chunks:
                waiting.add(pool.submit(count_process.count, chunk))
                if len(waiting) >= _AHEAD * self._processes:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise PixartError(
                "a process that counts captions died (out of memory?); run again with a smaller num_proc"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _chunks(source: CaptionSource, tally: Tally) -> Iterator[list[str]]:
    """The captions in lists that are quick to send; what has none is counted in `tally`."""
    chunk: list[str] = []
    characters = 0
    for row in source.read():
        if row.problem is not None:
            tally.left_out += 1
            tally.example = tally.example or f"{row.id}: {row.problem}"
        elif not has_text(row):
            tally.without_caption += 1
        else:
            assert row.text is not None
            chunk.append(row.text)
            characters += len(row.text)
            if len(chunk) == _CHUNK_CAPTIONS or characters > _CHUNK_CHARACTERS:
                yield chunk
                chunk, characters = [], 0
    if chunk:
        yield chunk
