"""Line charts as SVG text: no script, no clock, colours from the page's style sheet."""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 380, 210  # of the view box; text is 11 units high
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34
LOGARITHMIC_FROM = 4.0  # largest value / smallest


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        points: (x, y); those with a y that is not finite are left out.
        style: classes of the style sheet, as `smooth`.
        colour: CSS colour instead of the class's.
        dots: a dot at every point, for few points.
    """

    points: Sequence[tuple[float, float]]
    style: str = "smooth"
    colour: str | None = None
    dots: bool = False


def line_chart(lines: Sequence[Line], label: str, *, x_label: str = "step", from_zero: bool = False) -> str:
    """All lines on common axes, logarithmic if all values are positive and far apart.

    Args:
        label: what a screen reader says.
        from_zero: y begins at 0, for shares and rates.

    Returns:
        an `<svg>` element with classes `grid`, `axis`, `name` and those of the lines; a note if there is
        no finite value.
    """
    drawn = [
        dataclasses.replace(line, points=[(x, y) for x, y in line.points if math.isfinite(y)])
        for line in lines
    ]
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    if not ys:
        return '<p class="empty">no values yet</p>'
    log = not from_zero and min(ys) > 0 and max(ys) / min(ys) >= LOGARITHMIC_FROM
    low, high, y_ticks = _vertical(min(ys), max(ys), log, from_zero)
    left, right = min(0.0, min(xs)), max(xs)

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / ((right - left) or 1)

    def place_y(y: float) -> float:
        a, b, value = (math.log(v) if log else v for v in (low, high, y))
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - a) / ((b - a) or 1))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for tick in y_ticks:
        parts.append(_line("grid", LEFT, place_y(tick), WIDTH - RIGHT, place_y(tick)))
        parts.append(_text("axis", LEFT - 6, place_y(tick) + 3.5, "end", short(tick)))
    for tick in ticks(left, right, most=4):
        at = place_x(tick)
        anchor = "end" if at > WIDTH - RIGHT - 14 else "middle"
        parts.append(_text("axis", at, HEIGHT - 19, anchor, short(tick)))
    parts.append(_text("name", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "middle", x_label))
    for line in drawn:
        parts += _drawn(line, place_x, place_y)
    return "".join([*parts, "</svg>"])


def _vertical(low: float, high: float, log: bool, from_zero: bool) -> tuple[float, float, list[float]]:
    """Lower and upper end of the axis, and its ticks."""
    low = min(0.0, low) if from_zero else low
    marks = log_ticks(low, high) if log else ticks(low, high)
    if log:
        return min(low, marks[0]), max(high, marks[-1]), marks
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    return (low if from_zero else low - room), high + room, marks


def _drawn(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    colour = f' style="stroke:{html.escape(line.colour)}"' if line.colour else ""
    fill = f' style="fill:{html.escape(line.colour)}"' if line.colour else ""
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
    parts = [f'<polyline class="{line.style}"{colour} points="{path}"/>'] if len(line.points) > 1 else []
    if line.dots or len(line.points) == 1:
        parts += [
            f'<circle class="dot {line.style}"{fill} cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.4"/>'
            for a, b in line.points
        ]
    return parts


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(style: str, x: float, y: float, anchor: str, text: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{style}" {place}>{html.escape(text)}</text>'


def short(value: float) -> str:
    """A number as on an axis: `0.05`, `1,500`, `20k`, `1.2M`, `2e-05`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * (10 if unit == "k" else 1):
            return f"{value / size:.4g}{unit}"
    return f"{value:,.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.3g}"


def binned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: means of as many neighbours as that takes."""
    size = -(-len(points) // most) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts] if size > 1 else [*points]


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a tenth of the values (narrower at both ends, so without lag)."""
    half = len(values) // 20 + 1
    result = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        result.append(sum(window) / len(window))
    return result


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Up to `most` steps of round numbers that lie within low..high."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span))
    step = next(s * power for s in (0.1, 0.2, 0.5, 1, 2, 5, 10) if span / (s * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2, 5 x 10^n around low..high; powers of ten alone over more than two decades."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 100 else (1,)
    marks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
    below, above = [t for t in marks if t <= low], [t for t in marks if t >= high]
    kept = [t for t in marks if below[-1] <= t <= above[0]] if below and above else marks
    return kept if len(kept) <= 8 else kept[:: -(-len(kept) // 7)]  # over many decades not every power
