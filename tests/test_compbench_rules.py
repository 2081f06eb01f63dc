"""Golden tables for every rule of T2I-CompBench on boxes. Expected values were worked out by hand."""

import math
from pathlib import Path

import pytest

from pixart_core.evaluation.compbench.boxes import Box, frame_of, overlap, without_duplicates
from pixart_core.evaluation.compbench.language import Part, Sentence
from pixart_core.evaluation.compbench.numeracy import (
    counts_of,
    numeracy_ceiling,
    numeracy_score,
    singular,
    things_of,
)
from pixart_core.evaluation.compbench.prompts import read_prompts
from pixart_core.evaluation.compbench.spatial import (
    Relation,
    depth_ceiling,
    depth_position,
    depth_relation,
    depth_score,
    plane_ceiling,
    plane_position,
    plane_relation,
    plane_score,
)

OFFICIAL = Path(__file__).parents[2] / "shared/data/compbench"


def at(x: float, y: float, side: float = 20, label: str = "dog", score: float = 1.0) -> Box:
    """A square around (x, y)."""
    return Box(label, score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


def sentence(text: str) -> Sentence:
    """`word/N` is a noun, `word/P` a proper name."""
    parts: dict[str, Part] = {"N": "NOUN", "P": "PROPN"}
    pairs = [(word.partition("/")[0], word.partition("/")[2]) for word in text.split()]
    return Sentence((), tuple((word, parts.get(part, "OTHER")) for word, part in pairs))


# place, centre of the first box, centre of the second, both 20 x 20: score
PLANE = [
    ("on the left of", (100, 100), (200, 100), 1.0),
    ("on the left of", (200, 100), (100, 100), 0.0),
    ("on the left of", (100, 100), (200, 199), 1.0),
    ("on the left of", (100, 100), (200, 200), 0.0),  # as far down as to the side
    ("on the left of", (100, 100), (200, 300), 0.0),
    ("on the right of", (200, 100), (100, 100), 1.0),
    ("on the right of", (100, 100), (200, 100), 0.0),
    ("on the top of", (100, 100), (100, 200), 1.0),  # y grows downwards
    ("on the top of", (100, 200), (100, 100), 0.0),
    ("on the bottom of", (100, 200), (100, 100), 1.0),
    ("on the bottom of", (100, 100), (100, 200), 0.0),
    ("on the bottom of", (100, 200), (250, 100), 0.0),
    # 10 px apart: they share 10 x 20 of 600: IoU 1/3, so 0.1 / (1/3)
    ("on the left of", (100, 100), (110, 100), 0.3),
    ("on the top of", (100, 100), (100, 110), 0.3),
    # 18 px apart: 2 x 20 of 760, IoU 0.0526 is less than 0.1
    ("on the right of", (118, 100), (100, 100), 1.0),
    ("next to", (100, 100), (600, 249), 1.0),  # near in one direction is near
    ("near", (100, 100), (249, 700), 1.0),
    ("on side of", (100, 100), (250, 250), 1.0),  # 150 / 150
    ("on side of", (100, 100), (400, 300), 0.5),  # 150 / 300
    ("next to", (100, 100), (100, 100), 1.0),
    ("on top of", (100, 100), (100, 200), 0.0),  # officially no place that scores
    (None, (100, 100), (200, 100), 0.0),
]


@pytest.mark.parametrize(("place", "first", "second", "score"), PLANE)
def test_positions_in_the_plane(
    place: str | None, first: tuple[float, float], second: tuple[float, float], score: float
) -> None:
    assert plane_position(place, at(*first), at(*second)) == pytest.approx(score, abs=1e-12)


LEFT = Relation("dog", "chair", "on the left of")
DOG, CHAIR = at(100, 100, score=0.9), at(300, 100, label="chair", score=0.7)
# what was found, score
PLANE_SCORES = [
    ([DOG, CHAIR], 0.25 * 1.6 + 0.5),
    ([CHAIR, at(300, 90, label="dog", score=0.6)], 0.0),  # 0.325 without the position
    ([DOG], 0.0),
    ([CHAIR], 0.0),
    ([], 0.0),
    ([at(100, 100, label="hot dog", score=0.9), CHAIR], 0.0),  # labels must be equal
    ([DOG, at(500, 100, score=0.8), CHAIR], 0.9),  # the best dog counts, not the nearest
    ([at(500, 100, score=0.95), DOG, CHAIR], 0.0),
    ([at(300, 90, score=1.0), at(300, 100, label="chair", score=1.0)], 0.5),  # 0.5 is not below 0.5
]


@pytest.mark.parametrize(("boxes", "score"), PLANE_SCORES)
def test_scores_in_the_plane(boxes: list[Box], score: float) -> None:
    assert plane_score(LEFT, boxes) == pytest.approx(score, abs=1e-12)


def test_one_box_may_be_both_objects() -> None:
    assert plane_score(Relation("dog", "dog", "near"), [DOG]) == pytest.approx(0.45 + 0.5)


# place, second box (the first is 20 x 20 around 100, 100), depths of both: score
DEPTH = [
    ("in front of", at(100, 100), (0.9, 0.2), 1.0),
    ("in front of", at(100, 100), (0.2, 0.9), 0.0),
    ("in front of", at(100, 100), (0.5, 0.5), 0.0),
    ("behind", at(100, 100), (0.2, 0.9), 1.0),
    ("hidden", at(100, 100), (0.2, 0.9), 1.0),
    ("behind", at(100, 100), (0.9, 0.2), 0.0),
    ("in front of", at(110, 100), (0.9, 0.2), 2 / 3),  # IoU 1/3 of 1/2
    ("hidden", at(110, 100), (0.2, 0.9), 2 / 3),
    ("in front of", at(200, 100), (0.9, 0.2), 0.0),  # they do not touch
    ("in front of", Box("chair", 1, (90, 90, 110, 130)), (0.9, 0.2), 0.0),  # exactly half: nothing
    ("in front of", at(100, 100), (math.nan, 0.2), 0.0),
    (None, at(100, 100), (0.9, 0.2), 0.0),
]


@pytest.mark.parametrize(("place", "second", "depths", "score"), DEPTH)
def test_positions_in_depth(
    place: str | None, second: Box, depths: tuple[float, float], score: float
) -> None:
    first = at(100, 100)

    def mean_depth(box: Box) -> float:
        return depths[0] if box is first else depths[1]

    assert depth_position(place, first, second, mean_depth) == pytest.approx(score, abs=1e-12)


BIG_CHAIR = Box("office chair", 0.8, (80, 80, 120, 120))
FRONT = Relation("dog", "chair", "in front of")
DEPTH_SCORES = [
    ([DOG, BIG_CHAIR], 0.25 * 1.7 + 0.5 * (400 / 1600 / 0.5)),  # "chair" is a part of "office chair"
    ([DOG], 0.225),  # no cut at 0.5
    ([BIG_CHAIR], 0.2),
    ([], 0.0),
    # The last dog before a chair was met counts, not the best one.
    ([DOG, at(100, 100, score=0.5), BIG_CHAIR], 0.25 * 1.3 + 0.25),
    # After both were met nothing changes.
    ([DOG, BIG_CHAIR, at(100, 100, score=0.5)], 0.25 * 1.7 + 0.25),
    # One object alone: the first that fits.
    ([DOG, at(100, 100, score=0.5)], 0.225),
]


@pytest.mark.parametrize(("boxes", "score"), DEPTH_SCORES)
def test_scores_in_depth(boxes: list[Box], score: float) -> None:
    assert depth_score(FRONT, boxes, lambda box: -box.xyxy[3]) == pytest.approx(score, abs=1e-12)


# A prompt of ours, its parts of speech: first, second, place
PLANE_PROMPTS = [
    ("a dog on the left of a chair", "a dog/N on the left of a chair/N", ("dog", "chair", "on the left of")),
    ("a girl near a boy", "a girl/N near a boy/N", ("person", "person", "near")),
    ("a cup on side of a cat", "a cup/N on side/N of a cat/N", ("cup", "cat", "on side of")),
    ("nothing here", "nothing here", (None, None, None)),
    ("a dog on top of a car", "a dog/N on top/N of a car/N", ("dog", "car", "on top of")),
]
COMPLEX_PROMPTS = [
    ("The cup was on top of the mat.", "The cup/N was on top of the mat/N .", ("cup", "mat", "on top of")),
    ("The old red cup is near the door of glass", "The old red cup/N is near the door/N of glass/N",
     ("cup", "door", "near")),
    ("a cat sat next to Big Ben in London", "a cat/N sat next to Big/P Ben/P in London/P",
     ("cat", "Ben", "next to")),
    ("a man on the left of a cat near a dog", "a man/N on the left of a cat/N near a dog/N",
     (None, None, "near")),
    ("The cat slept.", "The cat/N slept .", (None, None, None)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "tagged", "expected", "complex_prompt"),
    [(*row, False) for row in PLANE_PROMPTS] + [(*row, True) for row in COMPLEX_PROMPTS],
)
def test_relations_of_prompts(
    text: str, tagged: str, expected: tuple[str | None, ...], complex_prompt: bool
) -> None:
    assert plane_relation(text, sentence(tagged), complex_prompt=complex_prompt) == Relation(*expected)


def test_relations_in_depth() -> None:
    read = sentence("a woman/N hidden by a car/N")
    assert depth_relation("a woman hidden by a car", read) == Relation("person", "car", "hidden")
    assert depth_relation("a cat in front of a car", read).place == "in front of"
    assert depth_relation("a cat by a car", read).place is None


THINGS = things_of(
    ["two dogs", "three women, four mice and five boats", "six sheep on a shelf", "eight cups"]
)


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("two dogs and a woman", [("dog", 2), ("person", 1)]),
        ("three mice, one boat, and five cups sat on a shelf", [("mouse", 3), ("boat", 1), ("cup", 5)]),
        ("four sheep", [("sheep", 4)]),
        ("one dog and the cup", [("dog", 1)]),
        ("a garden", []),
    ],
)
def test_counts_of_prompts(prompt: str, counts: list[tuple[str, int]]) -> None:
    assert counts_of(prompt, THINGS) == counts


@pytest.mark.parametrize(
    ("plural", "single"),
    [("strawberries", "strawberry"), ("peaches", "peach"), ("tomatoes", "tomato"), ("men", "man"),
     ("knives", "knife"), ("wolves", "wolf"), ("vases", "vase"), ("horses", "horse"),
     ("microwaves", "microwave"), ("glasses", "glass"), ("boxes", "box"), ("deer", "deer"),
     ("glass", "glass"), ("keys", "key")],
)  # fmt: skip
def test_singulars(plural: str, single: str) -> None:
    assert singular(plural) == single


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official prompts are not here")
def test_every_number_of_the_official_numeracy_prompts_counts_something() -> None:
    prompts = [prompt.text for prompt in read_prompts(str(OFFICIAL), ["numeracy"])["numeracy"]]
    things = things_of(prompts)
    for prompt in prompts:
        counts, words = counts_of(prompt, things), prompt.split()
        assert counts
        assert len(counts) >= sum(word in ("one", "two", "three", "four", "five", "six") for word in words)


def many(label: str, number: int) -> list[Box]:
    return [at(100 * place, 0, label=label) for place in range(number)]


# wanted, found: score
NUMERACY = [
    ([("dog", 2)], many("dog", 2), 1.0),
    ([("dog", 2)], many("dog", 3), 0.5),
    ([("dog", 2)], [], 0.0),
    ([("dog", 2), ("cat", 1)], many("dog", 2), 0.5),
    ([("dog", 2), ("cat", 1)], many("dog", 1) + many("cat", 1), 0.75),
    ([("chair", 2)], many("office chair", 1) + many("folding chair", 1), 1.0),  # parts of labels
    ([("chair", 1)], many("chair", 1) + many("office chair", 1), 1.0),  # but not where the label itself is
    ([("dog", 1)], [at(0, 0), at(0, 0.4)], 1.0),  # one dog found twice
    ([("dog", 2)], [at(0, 0), at(4, 0)], 1.0),  # IoU 0.66
    ([("dog", 1)], [at(0, 0, 40), at(0, 0, 10)], 1.0),  # one inside the other
    ([("dog", 1)], [at(0, 0), at(0, 0, label="cat")], 1.0),  # other labels do not hide it
    ([("dog", 1), ("dog", 1)], many("dog", 1), 1.0),
    ([], many("dog", 1), 0.0),
]


@pytest.mark.parametrize(("wanted", "boxes", "score"), NUMERACY)
def test_numeracy(wanted: list[tuple[str, int]], boxes: list[Box], score: float) -> None:
    assert numeracy_score(wanted, boxes) == pytest.approx(score, abs=1e-12)


def test_duplicates_count_both_ends_of_a_pixel_row() -> None:
    """10 and 9 pixels of 11 rows: (9 + 1) / (10 + 1) = 0.909 counts, 9 / 10 = 0.9 would not."""
    a, b = Box("dog", 1, (0, 0, 10, 10)), Box("dog", 1, (0, 0, 9, 10))
    assert overlap(a, b) == pytest.approx(0.9)
    assert without_duplicates([a, b]) == [a]


@pytest.mark.parametrize(
    ("size", "frame"),
    [((512, 512), (479, 479)), ((1024, 512), (480, 240)), ((512, 1024), (240, 480)), ((24, 24), (479, 479)),
     ((1000, 999), (479, 479)), ((640, 480), (480, 360))],
)  # fmt: skip
def test_frames_are_those_of_torchvision_s_resize(size: tuple[int, int], frame: tuple[int, int]) -> None:
    """Resize(479, max_size=480): sides cut off, not rounded; 640 x 480 is 638 x 479, then 480 x 360."""
    assert frame_of(*size) == frame


def test_ceilings_are_what_a_perfect_detector_of_some_labels_scores() -> None:
    labels = {"dog", "office chair", "chair", "person"}
    assert plane_ceiling(LEFT, labels) == 1.0
    assert plane_ceiling(Relation("dog", "sofa", "near"), labels) == 0.0
    assert plane_ceiling(Relation("dog", "chair", "on top of"), labels) == 0.5
    assert depth_ceiling(FRONT, {"dog", "office chair"}) == 1.0
    assert depth_ceiling(Relation("dog", "sofa", "behind"), labels) == 0.25
    assert depth_ceiling(Relation(None, None, None), labels) == 0.0
    assert numeracy_ceiling([("dog", 2), ("sofa", 1)], labels) == 0.5
    assert numeracy_ceiling([], labels) == 0.0


def test_boxes_without_area_share_nothing() -> None:
    assert overlap(at(0, 0, 0), at(0, 0, 0)) == 0.0
    assert plane_position("on the left of", at(0, 0, 0), at(5, 0, 0)) == 1.0
