"""The benchmark's rules for where things are, in the plane (UniDet 2D) and in depth (UniDet 3D).

They follow the official code also where it is odd, because numbers compare only so: "on top of" is no
place that scores; a depth map is indexed by x, then y; 3D scores below 0.5 stay, 2D ones become 0.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence

from pixart_core.evaluation.compbench.boxes import Box, overlap
from pixart_core.evaluation.compbench.language import Sentence

MeanDepth = Callable[[Box], float]
"""Mean of a depth map inside a box, larger is nearer; NaN for a box without pixels."""

# In the order in which they are looked for.
PLACES = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
DEPTHS = ("in front of", "behind", "hidden")
_COMPLEX_PLACES = frozenset(
    ("on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near")
)
_PEOPLE = frozenset(("girl", "boy", "man", "woman"))
_BESIDE = 150.0  # pixels of the frame between centres
_OVERLAP_2D, _OVERLAP_3D = 0.1, 0.5
_PASS = 0.5


@dataclasses.dataclass(frozen=True)
class Relation:
    """What a prompt says: `first` is at `place` of `second`. None where the prompt could not be read."""

    first: str | None
    second: str | None
    place: str | None


def plane_relation(text: str, sentence: Sentence, *, complex_prompt: bool) -> Relation:
    """The relation of a prompt of `spatial`, or of `complex`."""
    first, second = _around_place(sentence) if complex_prompt else _first_and_last(sentence)
    return Relation(_label(first), _label(second), next((place for place in PLACES if place in text), None))


def depth_relation(text: str, sentence: Sentence) -> Relation:
    """The relation of a prompt of `3d_spatial`."""
    first, second = _first_and_last(sentence)
    return Relation(_label(first), _label(second), next((place for place in DEPTHS if place in text), None))


def plane_score(relation: Relation, boxes: Sequence[Box]) -> float:
    """0.25 (s1 + s2) + 0.5 position of the best box of each object; less than 0.5 counts as 0.

    Labels must be equal. With one object alone it is 0.25 s, so 0.

    Args:
        boxes: highest score first.
    """
    first = next((box for box in boxes if box.label == relation.first), None)
    second = next((box for box in boxes if box.label == relation.second), None)
    score = _seen(first, second)
    if first is not None and second is not None:
        score += plane_position(relation.place, first, second) / 2
    return score if score >= _PASS else 0.0


def plane_position(place: str | None, first: Box, second: Box) -> float:
    """How well `first` is at `place` of `second`, in 0..1."""
    dx, dy = (b - a for a, b in zip(first.center, second.center, strict=True))
    if place in ("next to", "on side of", "near"):
        near = abs(dx) < _BESIDE or abs(dy) < _BESIDE
        return 1.0 if near else _BESIDE / max(abs(dx), abs(dy))
    ahead, across = {
        "on the right of": (-dx, dy),
        "on the left of": (dx, dy),
        "on the bottom of": (-dy, dx),
        "on the top of": (dy, dx),
    }.get(place or "", (0.0, 0.0))
    if ahead <= abs(across):
        return 0.0
    shared = overlap(first, second)
    return 1.0 if shared < _OVERLAP_2D else _OVERLAP_2D / shared


def depth_score(relation: Relation, boxes: Sequence[Box], mean_depth: MeanDepth) -> float:
    """0.25 (s1 + s2) + 0.5 position in depth; with one object alone 0.25 s.

    A label fits if the object is a part of it ("car" in "racing car").

    Args:
        boxes: highest score first.
    """
    first, second = _found_in_depth(relation, boxes)
    score = _seen(first, second)
    if first is not None and second is not None:
        score += depth_position(relation.place, first, second, mean_depth) / 2
    return score


def depth_position(place: str | None, first: Box, second: Box, mean_depth: MeanDepth) -> float:
    """How well `first` is at `place` of `second`: they overlap, and the nearer one is the right one."""
    if place is None:
        return 0.0
    difference = mean_depth(first) - mean_depth(second)
    right = difference > 0 if place == "in front of" else difference < 0
    shared = overlap(first, second)
    if not right or shared == _OVERLAP_3D:  # exactly half scores nothing officially
        return 0.0
    return min(1.0, shared / _OVERLAP_3D)


def plane_ceiling(relation: Relation, labels: Collection[str]) -> float:
    """The best score that a detector of these labels allows."""
    if relation.first not in labels or relation.second not in labels:
        return 0.0
    return 0.5 + 0.5 * (relation.place is not None and relation.place != "on top of")


def depth_ceiling(relation: Relation, labels: Collection[str]) -> float:
    """The best score that a detector of these labels allows."""
    known = [
        thing is not None and any(thing in label for label in labels)
        for thing in (relation.first, relation.second)
    ]
    if all(known):
        return 0.5 + 0.5 * (relation.place is not None)
    return 0.25 * sum(known)


def _seen(first: Box | None, second: Box | None) -> float:
    if first is not None and second is not None:
        return 0.25 * first.score + 0.25 * second.score
    alone = first or second
    return 0.25 * alone.score if alone is not None else 0.0


def _found_in_depth(relation: Relation, boxes: Sequence[Box]) -> tuple[Box | None, Box | None]:
    """As officially: with both objects there, of each the last that fits before both were met; one alone,
    the first that fits."""
    first, second = relation.first, relation.second
    has_first = first is not None and any(first in box.label for box in boxes)
    has_second = second is not None and any(second in box.label for box in boxes)
    found: list[Box | None] = [None, None]
    for box in boxes:
        if has_first and first is not None and first in box.label:
            found[0] = box
        if has_second and second is not None and second in box.label:
            found[1] = box
        if (found[0] is not None or not has_first) and (found[1] is not None or not has_second):
            break
    return found[0], found[1]


def _first_and_last(sentence: Sentence) -> tuple[str | None, str | None]:
    nouns = sentence.nouns
    return (nouns[0], nouns[-1]) if nouns else (None, None)


def _around_place(sentence: Sentence) -> tuple[str | None, str | None]:
    """The noun before and the noun after the place; (None, None) unless there are exactly two."""
    words = sentence.words
    objects: list[str] = []
    for start in range(len(words)):
        length = next(
            (
                length
                for length in (3, 2, 1)
                if " ".join(word for word, _ in words[start : start + length]) in _COMPLEX_PLACES
            ),
            None,
        )
        if length is not None:
            objects += _noun_before(words[:start]) + _noun_after(words[start + length :])
    return (objects[0], objects[1]) if len(objects) == 2 else (None, None)


def _noun_before(words: Sequence[tuple[str, str]]) -> list[str]:
    return next(([word] for word, part in reversed(words) if part in ("NOUN", "PROPN")), [])


def _noun_after(words: Sequence[tuple[str, str]]) -> list[str]:
    """The first common noun, or the end of the first proper name that something follows."""
    common = next(([word] for word, part in words if part == "NOUN"), None)
    if common is not None:
        return common
    pairs = itertools.pairwise(words)
    return next(([word] for (word, part), (_, after) in pairs if part == "PROPN" and after != "PROPN"), [])


def _label(thing: str | None) -> str | None:
    return "person" if thing in _PEOPLE else thing
