"""Scores from boxes: the categories spatial, 3d_spatial and numeracy, and the places of complex."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pixart_core.artifacts.card import fingerprint
from pixart_core.evaluation.compbench.answer_cache import AnswerCache
from pixart_core.evaluation.compbench.boxes import Box
from pixart_core.evaluation.compbench.depth import DepthModel, find_depth, mean_depth, read_depth
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
from pixart_core.evaluation.compbench.work import Item, Score, Work
from pixart_core.progress import Progress

BoxesOf = Callable[[Item], Sequence[Box]]
Ceiling = Callable[[Prompt], float]


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """Scores of a category.

    Attributes:
        ceiling: best score of a prompt; None if it is not known which labels the detector has.
    """

    score: Score
    ceiling: Ceiling | None


def object_protocol(source: Detections | Detector, kind: str, suffix: str) -> Protocol:
    """The id of a rule on the boxes of `source`.

    Args:
        kind: "2d", "3d" or "numeracy".
        suffix: of the reader, and of the depth model.
    """
    official = isinstance(source, Detections)
    name = "unidet" if isinstance(source, Detections) else source.name
    return Protocol(f"compbench/{name}-{kind}{suffix}@1", official and not suffix)


def plane_scores(work: Work, boxes: BoxesOf, relations: Mapping[Prompt, Relation]) -> Score:
    """Scores of the 2D rules."""

    def score(item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        relation, found = relations[prompt], boxes(item)
        return plane_score(relation, found), _reasons(relation, found)

    return score


def spatial_scores(
    work: Work, reader: Reader, source: Detections | Detector, cache: Path, progress: Progress
) -> ObjectScores:
    """The category spatial; or, of complex, the third that says where things are."""
    complex_prompts = work.category == "complex"
    relations = {
        prompt: plane_relation(prompt.text, reader.read(prompt.text), complex_prompt=complex_prompts)
        for prompt in work.prompts
    }
    labels = _objects(relations.values())
    boxes = find_boxes(work, source, labels, cache, progress)
    known = vocabulary(source, labels)
    ceiling = None if known is None else (lambda prompt: plane_ceiling(relations[prompt], known))
    return ObjectScores(plane_scores(work, boxes, relations), ceiling)


def depth_scores(
    work: Work,
    reader: Reader,
    source: Detections | Detector,
    depth: DepthModel | Path,
    cache: Path,
    progress: Progress,
) -> ObjectScores:
    """The category 3d_spatial."""
    relations = {prompt: depth_relation(prompt.text, reader.read(prompt.text)) for prompt in work.prompts}
    labels = _objects(relations.values())
    boxes = find_boxes(work, source, labels, cache, progress)
    means = _mean_depths(work, boxes, relations, depth, cache, progress)

    def score(item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        relation, found = relations[prompt], boxes(item)
        value = depth_score(relation, found, lambda box: means[item.index].get(_pixels(box), math.nan))
        return value, _reasons(relation, found)

    known = vocabulary(source, labels)
    ceiling = None if known is None else (lambda prompt: depth_ceiling(relations[prompt], known))
    return ObjectScores(score, ceiling)


def numeracy_scores(
    work: Work, source: Detections | Detector, cache: Path, progress: Progress
) -> ObjectScores:
    """The category numeracy."""
    things = things_of([prompt.text for prompt in work.prompts])
    counts = {prompt: counts_of(prompt.text, things) for prompt in work.prompts}
    labels = sorted({label for wanted in counts.values() for label, _ in wanted})
    boxes = find_boxes(work, source, labels, cache, progress)

    def score(item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        found = boxes(item)
        wanted = ", ".join(f"{number} {label}" for label, number in counts[prompt])
        return numeracy_score(counts[prompt], found), (f"wanted {wanted}", _seen(found))

    known = vocabulary(source, labels)
    ceiling = None if known is None else (lambda prompt: numeracy_ceiling(counts[prompt], known))
    return ObjectScores(score, ceiling)


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


def find_boxes(
    work: Work, source: Detections | Detector, labels: Sequence[str], cache: Path, progress: Progress
) -> BoxesOf:
    """The boxes of every image: from the dump, or from the detector and its cache.

    Raises:
        UserError: the dump lacks an image; an image is gone or damaged.
        PixartError: the disk is full; the boxes of earlier images are kept.
    """
    if isinstance(source, Detections):
        found: dict[int, Sequence[Box]] = {item.index: source.of(item.names) for item in work.items}
        return lambda item: found[item.index]
    detector: Detector = source
    answers = AnswerCache(cache, f"{detector.name}-{detector.weights}")
    question = fingerprint(list(labels))
    boxes: dict[int, Sequence[Box]] = {}
    task = f"detect {work.category}"
    progress.start(task, len(work.items))
    for batch in work.batches(1):
        for item, digest, data in batch:
            if (digest, question) not in answers:
                detected = detector.detect(work.decode(item, data), labels)
                rows = [[box.label, box.score, box.xyxy] for box in detected]
                answers.append([(digest, question, rows)])
            boxes[item.index] = [
                Box(label, score, tuple(sides)) for label, score, sides in answers.answer(digest, question)
            ]
        progress.advance(task, len(batch))
    progress.finish(task)
    return lambda item: boxes[item.index]


def _mean_depths(
    work: Work,
    boxes: BoxesOf,
    relations: Mapping[Prompt, Relation],
    depth: DepthModel | Path,
    cache: Path,
    progress: Progress,
) -> dict[int, dict[str, float]]:
    """{image: {pixels of a box: mean depth}} of the boxes that a rule may look at."""
    answers = AnswerCache(cache, depth.key) if isinstance(depth, DepthModel) else None
    means: dict[int, dict[str, float]] = {}
    task = f"depth {work.category}"
    progress.start(task, len(work.items))
    for (item, digest, data), *_ in work.batches(1):
        wanted = {_pixels(box): box for box in boxes(item) if _is_named(box, item, relations)}
        if answers is None:
            assert isinstance(depth, Path)
            stored = read_depth(depth, item.names) if wanted else None
            means[item.index] = {
                key: mean_depth(stored, box) for key, box in wanted.items() if stored is not None
            }
        else:
            if not all((digest, key) in answers for key in wanted):
                assert isinstance(depth, DepthModel)
                made = depth.estimate(work.decode(item, data))
                answers.append(
                    [(digest, key, _or_none(mean_depth(made, box))) for key, box in wanted.items()]
                )
            found = {key: answers.answer(digest, key) for key in wanted}
            means[item.index] = {key: math.nan if mean is None else mean for key, mean in found.items()}
        progress.advance(task)
    progress.finish(task)
    return means


def _is_named(box: Box, item: Item, relations: Mapping[Prompt, Relation]) -> bool:
    things = {thing for prompt in item.prompts for thing in _things(relations[prompt])}
    return any(thing in box.label for thing in things)


def _objects(relations: Collection[Relation]) -> list[str]:
    return sorted({thing for relation in relations for thing in _things(relation)})


def _things(relation: Relation) -> list[str]:
    return [thing for thing in (relation.first, relation.second) if thing is not None]


def _pixels(box: Box) -> str:
    return " ".join(str(int(side)) for side in box.xyxy)


def _or_none(mean: float) -> float | None:
    return None if math.isnan(mean) else mean


def _reasons(relation: Relation, boxes: Sequence[Box]) -> tuple[str, ...]:
    if relation.first is None or relation.second is None:
        return ("the prompt names no two objects",)
    wanted = f"wanted {relation.first} {relation.place or '(no place)'} {relation.second}"
    return (wanted, _seen(boxes))


def _seen(boxes: Sequence[Box]) -> str:
    shown = ", ".join(f"{box.label} {box.score:.2f}" for box in boxes[:6])
    return f"found {shown or 'nothing'}"
