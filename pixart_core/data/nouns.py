"""Noun statistics of captions, as in the paper's Table 1: how much a caption says, and how richly."""

import collections
import re
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from pixart_core.errors import UserError

VALID_OCCURRENCES = 10  # "appearing more than 10 times" (Table 1)
_NOUN_TAGS = ("NN", "NNS", "NNP", "NNPS")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")

# Table 1 as printed, of the paper's own captions and tagger (NLTK): to look at beside ours, not to reach.
PAPER_ROWS: dict[str, dict[str, float]] = {
    name: {
        "valid_distinct_nouns": valid,
        "distinct_nouns": distinct,
        "valid_ratio": ratio,
        "total_nouns": total,
        "nouns_per_image": average,
    }
    for name, valid, distinct, ratio, total, average in (
        ("LAION", 210e3, 2461e3, 0.085, 72.0e6, 6.4),
        ("LAION-LLaVA", 85e3, 646e3, 0.133, 233.9e6, 20.9),
        ("SAM-LLaVA", 23e3, 124e3, 0.186, 327.9e6, 29.3),
        ("Internal", 152e3, 582e3, 0.261, 136.6e6, 12.2),
    )
}


def caption_statistics(captions: Iterable[str]) -> dict[str, Any]:
    """Count the nouns of `captions`, which are read once, one by one.

    Returns:
        captions, total_nouns, distinct_nouns (DN), valid_distinct_nouns (VN: more than 10 occurrences),
        valid_ratio (VN / DN), nouns_per_image, tagger, and the paper's rows under "reported". Nouns are
        told apart by their lower-case form; the ratio depends on how many captions there are.

    Raises:
        UserError: TextBlob is not installed.
    """
    tag, tagger = _pattern_tagger()
    counts: collections.Counter[str] = collections.Counter()
    number = 0
    for caption in captions:
        number += 1
        for word, kind in tag(caption):
            noun = _EDGES.sub("", word).lower()
            if kind in _NOUN_TAGS and noun:
                counts[noun] += 1
    valid = sum(count > VALID_OCCURRENCES for count in counts.values())
    return {
        "captions": number,
        "total_nouns": counts.total(),
        "distinct_nouns": len(counts),
        "valid_distinct_nouns": valid,
        "valid_ratio": valid / len(counts) if counts else 0.0,
        "nouns_per_image": counts.total() / number if number else 0.0,
        "tagger": tagger,
        "reported": PAPER_ROWS,
    }


def _pattern_tagger() -> tuple[Callable[[str], list[tuple[str, str]]], str]:
    """(tagger, its name). TextBlob's own lexicon tagger: its default one would download NLTK corpora."""
    try:
        from textblob.en.taggers import PatternTagger
    except ImportError as error:
        raise UserError("noun statistics need TextBlob: pip install 'pixart[nouns]'") from error
    return PatternTagger().tag, f"textblob {version('textblob')} PatternTagger"
