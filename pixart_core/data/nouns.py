"""Noun statistics of captions, as in the paper's Table 1: how much a caption says, and how richly."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from pixart_core.data.taggers import Tagger, load_tagger
from pixart_core.data.token_lengths import TokenLengths

VALID_OCCURRENCES = 10  # "appearing more than 10 times" (Table 1)
_CHUNK = 1000

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


@dataclasses.dataclass
class CaptionCounts:
    """What is counted of captions. Counts of parts add up to those of the whole, in any order.

    Attributes:
        captions: how many, blank ones not among them.
        nouns: occurrences of each.
        lengths: captions of each length in tokens; empty when tokens are not counted.
    """

    captions: int = 0
    nouns: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lengths: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    @classmethod
    def of(cls, texts: Sequence[str], tagger: Tagger, tokens: TokenLengths | None) -> Self:
        """Count `texts`, none of which is blank."""
        counts = cls(captions=len(texts))
        for nouns in tagger.nouns(texts):
            counts.nouns.update(nouns)
        if tokens is not None:
            counts.lengths.update(tokens.of(texts))
        return counts

    def add(self, other: "CaptionCounts") -> None:
        """Add the counts of other captions to these."""
        self.captions += other.captions
        self.nouns.update(other.nouns)
        self.lengths.update(other.lengths)

    def noun_statistics(self) -> dict[str, Any]:
        """captions, total_nouns, distinct_nouns (DN), valid_distinct_nouns (VN: more than 10
        occurrences), valid_ratio (VN / DN) and nouns_per_image."""
        total, distinct = self.nouns.total(), len(self.nouns)
        valid = sum(count > VALID_OCCURRENCES for count in self.nouns.values())
        return {
            "captions": self.captions,
            "total_nouns": total,
            "distinct_nouns": distinct,
            "valid_distinct_nouns": valid,
            "valid_ratio": valid / distinct if distinct else 0.0,
            "nouns_per_image": total / self.captions if self.captions else 0.0,
        }

    def token_statistics(self, max_tokens: int) -> dict[str, Any] | None:
        """Tokens a caption: mean, median, p95 and max, and the captions longer than `max_tokens`; None
        when no tokens were counted. Quantiles are interpolated linearly, as numpy's are."""
        number = self.lengths.total()
        if not number:
            return None
        truncated = sum(count for length, count in self.lengths.items() if length > max_tokens)
        return {
            "mean": sum(length * count for length, count in self.lengths.items()) / number,
            "median": _quantile(self.lengths, 0.5),
            "p95": _quantile(self.lengths, 0.95),
            "max": max(self.lengths),
            "truncated": truncated,
            "truncated_share": truncated / number,
        }


def caption_statistics(captions: Iterable[str]) -> dict[str, Any]:
    """Count the nouns of `captions`, which are read once, one by one.

    Returns:
        what `CaptionCounts.noun_statistics` gives, tagger, and the paper's rows under "reported". Nouns
        are told apart by their lower-case form; blank captions are left out; the ratio depends on how
        many captions there are.

    Raises:
        UserError: no tagger is installed.
    """
    tagger = load_tagger()
    counts = CaptionCounts()
    texts = (caption for caption in captions if caption.strip())
    while chunk := list(itertools.islice(texts, _CHUNK)):
        counts.add(CaptionCounts.of(chunk, tagger, None))
    return counts.noun_statistics() | {"tagger": tagger.name, "reported": PAPER_ROWS}


def _quantile(counts: Mapping[int, int], share: float) -> float:
    """The quantile of numbers given as {number: how often}."""
    place = share * (sum(counts.values()) - 1)
    lower, upper = _at(counts, math.floor(place)), _at(counts, math.ceil(place))
    return lower + (upper - lower) * (place - math.floor(place))


def _at(counts: Mapping[int, int], place: int) -> int:
    """The number at `place` (from 0) of all in order."""
    for number in sorted(counts):
        place -= counts[number]
        if place < 0:
            return number
    raise IndexError(place)
