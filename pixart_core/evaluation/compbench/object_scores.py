"""Scores from boxes: the categories spatial, 3d_spatial and numeracy, and the places of complex."""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.compbench.box_askers import (
    BoxAsker,
    DepthAsker,
    DumpedBoxes,
    StoredDepths,
    boxes_of,
    pixels_of,
)
from pixart_core.evaluation.compbench.boxes import Box
from pixart_core.evaluation.compbench.depth import DepthModel, find_depth
from pixart_core.evaluation.compbench.detections import Detections
from pixart_core.evaluation.compbench.detectors import Detector
from pixart_core.evaluation.compbench.language import Reader
from pixart_core.evaluation.compbench.numeracy import (
    counts_of,
    numeracy_ceiling,
    numeracy_score,
    things_of,
)
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.evaluation.compbench.spatial import (
    Relation,
    depth_ceiling,
    depth_relation,
    depth_score,
    plane_ceiling,
    plane_relation,
    plane_score,
)
from pixart_core.evaluation.compbench.summary import Protocol
from pixart_core.evaluation.compbench.work import Asker, Item, Work


def object_protocol(source: Detections | Detector, kind: str, suffix: str) -> Protocol:
    """The id of a rule on the boxes of `source`.

    Args:
        kind: "2d", "3d" or "numeracy".
        suffix: of the reader, and of the depth model.
    """
    official = isinstance(source, Detections)
    name = "unidet" if isinstance(source, Detections) else source.name
    return Protocol(f"compbench/{name}-{kind}{suffix}@1", official and not suffix)


class PlaneScores:
    """The category spatial; or, of complex, the third that says where things are."""

    def __init__(self, work: Work, reader: Reader, source: Detections | Detector, caches: Caches) -> None:
        complex_prompts = work.category == "complex"
        self._relations = {
            prompt: plane_relation(prompt.text, reader.read(prompt.text), complex_prompt=complex_prompts)
            for prompt in work.prompts
        }
        labels = _objects(self._relations.values())
        self._boxes = boxes_of(work, source, labels, caches)
        self.askers = _askers(self._boxes)
        self._vocabulary = vocabulary(source, labels)

    def score(self, item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        """See `work.Score`."""
        relation, found = self._relations[prompt], self._boxes.of(item)
        return plane_score(relation, found), _reasons(relation, found)

    def ceiling(self, prompt: Prompt) -> float | None:
        """Best score of a prompt; None if it is not known which labels the detector has."""
        known = self._vocabulary
        return None if known is None else plane_ceiling(self._relations[prompt], known)


class DepthScores:
    """The category 3d_spatial."""

    def __init__(
        self,
        work: Work,
        reader: Reader,
        source: Detections | Detector,
        depth: DepthModel | Path,
        caches: Caches,
    ) -> None:
        self._relations = {
            prompt: depth_relation(prompt.text, reader.read(prompt.text)) for prompt in work.prompts
        }
        labels = _objects(self._relations.values())
        self._boxes = boxes_of(work, source, labels, caches)
        named = functools.partial(_named_boxes, self._boxes, self._relations)
        self._depths: StoredDepths | DepthAsker
        if isinstance(depth, Path):
            self._depths = StoredDepths(depth, named)
        else:
            self._depths = DepthAsker(work, depth, named, caches)
        # The depth of a box is asked for when the box is known.
        self.askers = _askers(self._boxes) + _askers(self._depths)
        self._vocabulary = vocabulary(source, labels)

    def score(self, item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        """See `work.Score`."""
        relation, found = self._relations[prompt], self._boxes.of(item)
        means = self._depths.of(item)
        value = depth_score(relation, found, lambda box: means.get(pixels_of(box), math.nan))
        return value, _reasons(relation, found)

    def ceiling(self, prompt: Prompt) -> float | None:
        """As `PlaneScores.ceiling`."""
        known = self._vocabulary
        return None if known is None else depth_ceiling(self._relations[prompt], known)


class NumeracyScores:
    """The category numeracy."""

    def __init__(self, work: Work, source: Detections | Detector, caches: Caches) -> None:
        things = things_of([prompt.text for prompt in work.prompts])
        self._counts = {prompt: counts_of(prompt.text, things) for prompt in work.prompts}
        labels = sorted({label for wanted in self._counts.values() for label, _ in wanted})
        self._boxes = boxes_of(work, source, labels, caches)
        self.askers = _askers(self._boxes)
        self._vocabulary = vocabulary(source, labels)

    def score(self, item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        """See `work.Score`."""
        counts, found = self._counts[prompt], self._boxes.of(item)
        wanted = ", ".join(f"{number} {label}" for label, number in counts)
        return numeracy_score(counts, found), (f"wanted {wanted}", _seen(found))

    def ceiling(self, prompt: Prompt) -> float | None:
        """As `PlaneScores.ceiling`."""
        known = self._vocabulary
        return None if known is None else numeracy_ceiling(self._counts[prompt], known)


def check_dumps(work: Work, source: Detections | Detector, depth: DepthModel | Path | None) -> None:
    """Look whether the files that the official code made know every image, before any work.

    Raises:
        UserError: one is missing (named).
    """
    for item in work.items:
        if isinstance(source, Detections):
            source.of(item.names)
        if isinstance(depth, Path):
            find_depth(depth, item.names)


def vocabulary(source: Detections | Detector, labels: Sequence[str]) -> Collection[str] | None:
    """The labels that `source` can find; a model finds what it is asked for."""
    return source.vocabulary if isinstance(source, Detections) else frozenset(labels)


def _askers(found: object) -> list[Asker]:
    return [found] if isinstance(found, Asker) else []


def _named_boxes(
    boxes: DumpedBoxes | BoxAsker, relations: Mapping[Prompt, Relation], item: Item
) -> list[Box]:
    """The boxes of an image that the rule of one of its prompts may look at."""
    return [box for box in boxes.of(item) if _is_named(box, item, relations)]


def _is_named(box: Box, item: Item, relations: Mapping[Prompt, Relation]) -> bool:
    things = {thing for prompt in item.prompts for thing in _things(relations[prompt])}
    return any(thing in box.label for thing in things)


def _objects(relations: Collection[Relation]) -> list[str]:
    return sorted({thing for relation in relations for thing in _things(relation)})


def _things(relation: Relation) -> list[str]:
    return [thing for thing in (relation.first, relation.second) if thing is not None]


def _reasons(relation: Relation, boxes: Sequence[Box]) -> tuple[str, ...]:
    if relation.first is None or relation.second is None:
        return ("the prompt names no two objects",)
    wanted = f"wanted {relation.first} {relation.place or '(no place)'} {relation.second}"
    return (wanted, _seen(boxes))


def _seen(boxes: Sequence[Box]) -> str:
    shown = ", ".join(f"{box.label} {box.score:.2f}" for box in boxes[:6])
    return f"found {shown or 'nothing'}"
