"""A process that counts captions for another one: it imports little, so that it starts soon."""

import multiprocessing
import os
import signal
import threading

from pixart_core.data.nouns import CaptionCounts
from pixart_core.data.taggers import Kind, Tagger, load_tagger
from pixart_core.data.token_lengths import TokenLengths

_tools: tuple[Tagger, TokenLengths | None] | None = None


def begin(tagger: Kind, spacy_model: str, tokens: TokenLengths | None) -> None:
    """Prepare the process: it leaves Ctrl-C to the one that started it, and ends when that one is gone."""
    global _tools
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread in each of several processes
    _tools = (load_tagger(tagger, spacy_model), tokens)


def count(texts: list[str]) -> CaptionCounts:
    """The counts of some captions."""
    assert _tools is not None
    return CaptionCounts.of(texts, *_tools)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
