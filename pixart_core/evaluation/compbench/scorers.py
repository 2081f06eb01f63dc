"""How each category is scored: by what, under which protocol, after whom was asked."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.compbench.attributes import AttributeAsker, attribute_protocol
from pixart_core.evaluation.compbench.object_scores import (
    DepthScores,
    NumeracyScores,
    PlaneScores,
    object_protocol,
)
from pixart_core.evaluation.compbench.parts import Parts
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.evaluation.compbench.similarity import SimilarityAsker, similarity_protocol
from pixart_core.evaluation.compbench.summary import Protocol
from pixart_core.evaluation.compbench.work import Asker, Item, Score, Work
from pixart_core.recipe.compbench import CompBenchOptions


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Of one category.

    Attributes:
        score: of an image against a prompt, once `askers` have looked at the image.
        ceiling: best score of a prompt that the rules allow, None if not known; None for a category without.
        askers: in the order in which they must look.
    """

    score: Score
    protocol: Protocol
    askers: Sequence[Asker]
    ceiling: Callable[[Prompt], float | None] | None = None


def scorer_of(work: Work, parts: Parts, options: CompBenchOptions, caches: Caches) -> Scorer:
    """The scorer of the category of `work`; its parts are here."""
    match work.category:
        case "spatial":
            plane = PlaneScores(work, parts.reader, parts.boxes, caches)
            protocol = object_protocol(parts.boxes, "2d", parts.reader.suffix)
            return Scorer(plane.score, protocol, plane.askers, plane.ceiling)
        case "3d_spatial":
            space = DepthScores(work, parts.reader, parts.boxes, parts.depth, caches)
            suffix = ("" if isinstance(parts.depth, Path) else parts.depth.name) + parts.reader.suffix
            protocol = object_protocol(parts.boxes, "3d", suffix)
            return Scorer(space.score, protocol, space.askers, space.ceiling)
        case "numeracy":
            numbers = NumeracyScores(work, parts.boxes, caches)
            protocol = object_protocol(parts.boxes, "numeracy", "")
            return Scorer(numbers.score, protocol, numbers.askers, numbers.ceiling)
        case "non_spatial":
            likeness = SimilarityAsker(work, parts.clip, None, parts.batch_size, caches)
            return Scorer(likeness.score, similarity_protocol(parts.clip), [likeness])
        case "complex":
            return _three_in_one(work, parts, options, caches)
        case _:
            return _attributes(work, parts, options, caches)


def _attributes(work: Work, parts: Parts, options: CompBenchOptions, caches: Caches) -> Scorer:
    asker = AttributeAsker(work, parts.blip, parts.reader, options.noun_phrases, caches)
    return Scorer(asker.score, attribute_protocol(parts.blip, options.noun_phrases, parts.reader), [asker])


def _three_in_one(work: Work, parts: Parts, options: CompBenchOptions, caches: Caches) -> Scorer:
    """3-in-1: the mean of those of attributes A, places S and actions C that the prompt speaks of."""
    attributes = _attributes(work, parts, options, caches)
    places = PlaneScores(work, parts.reader, parts.boxes, caches)
    actions = SimilarityAsker(work, parts.clip, parts.reader, parts.batch_size, caches)
    others = [object_protocol(parts.boxes, "2d", ""), similarity_protocol(parts.clip)]

    def score(item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        used = [attributes.score]
        used += [places.score] if prompt.kind in ("spatial", "spatial-action") else []
        used += [actions.score] if prompt.kind in ("action", "spatial-action") else []
        found = [part(item, prompt) for part in used]
        reasons = tuple(reason for _, why in found for reason in why)
        return sum(value for value, _ in found) / len(found), reasons

    ids = [protocol.id for protocol in (attributes.protocol, *others)]
    names = [name.removeprefix("compbench/").removesuffix("@1") for name in ids]
    comparable = attributes.protocol.comparable and all(other.comparable for other in others)
    protocol = Protocol(f"compbench/3in1-{'-'.join(names)}@1", comparable)
    return Scorer(score, protocol, [*attributes.askers, *places.askers, actions])
