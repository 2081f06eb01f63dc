"""Laws of charts: what is drawn lies inside, where its numbers say, and is safe to put into a page."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixart_core.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    binned,
    line_chart,
    log_ticks,
    short,
    ticks,
)

VALUES = st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=30)


def drawn(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    points = [
        tuple(map(float, pair.split(",")))
        for e in root.iter("polyline")
        for pair in e.get("points", "").split()
    ]
    return points + [(float(e.get("cx", "")), float(e.get("cy", ""))) for e in root.iter("circle")]  # type: ignore[return-value]


@given(VALUES, st.booleans())
def test_every_point_lies_inside_the_axes(values: list[float], from_zero: bool) -> None:
    svg = line_chart([Line(list(enumerate(values)), dots=True)], "values", from_zero=from_zero)
    for x, y in drawn(svg):
        assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=30))
def test_larger_values_are_drawn_higher(values: list[float]) -> None:
    points = drawn(line_chart([Line(list(enumerate(values)))], "values"))
    for (_, y), value in zip(points, values, strict=True):
        for (_, other_y), other in zip(points, values, strict=True):
            assert value <= other or y <= other_y + 0.11  # places have one digit


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 6))
def test_ticks_are_few_round_and_inside(low: float, span: float, most: int) -> None:
    marks = ticks(low, low + span, most)
    assert 1 <= len(marks) <= most + 1
    step = marks[1] - marks[0] if len(marks) > 1 else 0.0
    for mark, after in itertools.pairwise(marks):
        assert after - mark == pytest.approx(step, rel=1e-6)
    if len(marks) > 1:
        assert low - 1e-6 * span <= marks[0]
        assert marks[-1] <= low + span * (1 + 1e-6)
        assert re.fullmatch(r"[125]0*|[125]e[+-]\d+|0\.0*[125]", f"{step:.3g}")


@given(st.floats(1e-9, 1e9), st.floats(1.5, 1e9))
def test_logarithmic_ticks_enclose_and_are_few(low: float, ratio: float) -> None:
    marks = log_ticks(low, low * ratio)
    assert 1 <= len(marks) <= 8
    assert marks == sorted(marks)
    assert marks[0] <= low * (1 + 1e-9)


def test_values_that_are_not_finite_leave_a_gap_and_none_at_all_a_note() -> None:
    assert len(drawn(line_chart([Line([(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)])], "x"))) == 2
    assert "<svg" not in line_chart([Line([(0, math.nan)])], "x")
    assert "<svg" not in line_chart([Line([])], "x")


def test_labels_are_escaped() -> None:
    svg = line_chart([Line([(0, 1.0), (1, 2.0)], colour='"><script>')], "<script>", x_label="<b>")
    assert "<script>" not in svg
    assert "<b>" not in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (1500, "1,500"),
        (20_000, "20k"),
        (1_200_000, "1.2M"),
        (2e-5, "2e-05"),
        (-3, "-3"),
    ],
)
def test_numbers_on_an_axis_are_short(value: float, text: str) -> None:
    assert short(value) == text


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 50))
def test_bins_keep_the_mean_and_the_end(values: list[float], most: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    means = binned(points, most)
    assert len(means) <= most or not values
    if values:
        assert means[-1][0] == points[-1][0]
    if values and len(values) % most == 0:
        assert sum(y for _, y in means) / len(means) == pytest.approx(sum(values) / len(values), abs=1e-6)
