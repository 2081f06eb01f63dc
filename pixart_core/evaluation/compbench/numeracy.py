"""The benchmark's rules for how many of each thing there are."""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

from pixart_core.evaluation.compbench.boxes import Box, without_duplicates

NUMBERS = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
}  # fmt: skip
_LABELS = {
    "boy": "person",
    "girl": "person",
    "man": "person",
    "woman": "person",
    "ship": "boat",
    "goldfish": "fish",
    "painting": "picture",
}
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "knives": "knife",
    "leaves": "leaf",
}
_ENDINGS = ((r"ies$", "y"), (r"([lr])ves$", r"\1f"), (r"(o|ss|x|z|ch|sh)es$", r"\1"), (r"(?<!s)s$", ""))
_WORD = re.compile(r"[^\W\d_]+")


def things_of(prompts: Sequence[str]) -> dict[str, str]:
    """{word as it stands after a number: its singular} of all things that the prompts count.

    What follows "two" to "eight" somewhere is a thing; what follows only "a" or "one" may be the place. Of
    the benchmark's 300 prompts this reads what its own list of objects does.
    """
    things: dict[str, str] = {}
    for prompt in prompts:
        words = _WORD.findall(prompt)
        for number, word in itertools.pairwise(words):
            if NUMBERS.get(number, 1) > 1:
                things[word] = singular(word)
    return things | {single: single for single in things.values()}


def counts_of(prompt: str, things: Mapping[str, str]) -> list[tuple[str, int]]:
    """(label, how many) of each thing that the prompt counts, in order."""
    words = _WORD.findall(prompt)
    return [
        (_LABELS.get(things[word], things[word]), NUMBERS[number])
        for number, word in itertools.pairwise(words)
        if number in NUMBERS and word in things
    ]


def numeracy_score(counts: Sequence[tuple[str, int]], boxes: Sequence[Box]) -> float:
    """Half of each thing's share for being there, half for the exact number.

    Boxes that lie on another of their label are dropped first. A thing that is no label stands for every
    label that it is a part of.

    Args:
        boxes: highest score first.
    """
    found = [box.label for box in without_duplicates(list(boxes))]
    score = 0.0
    for label, number in counts:
        if label not in found:
            found = [label if label in other else other for other in found]
        if label in found:
            score += (0.5 + 0.5 * (found.count(label) == number)) / len(counts)
    return score


def numeracy_ceiling(counts: Sequence[tuple[str, int]], labels: Collection[str]) -> float:
    """The best score that a detector of these labels allows."""
    known = [any(thing in label for label in labels) for thing, _ in counts]
    return sum(known) / len(known) if known else 0.0


def singular(word: str) -> str:
    """The singular of a regular plural and of some that are not; what is no plural stays."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, replacement in _ENDINGS:
        changed = re.sub(ending, replacement, word)
        if changed != word:
            return changed
    return word
