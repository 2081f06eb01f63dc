"""Line charts as SVG text: no script, no clock, colours from the page's style sheet."""

import math
from collections.abc import Sequence

from pixart_core.charts import log_ticks, smoothed, ticks

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 30


def loss_chart(curve: Sequence[Sequence[float]], label: str) -> str:
    """Loss over steps: every logged value faintly, and smoothed; logarithmic if it can be.

    Args:
        curve: (step, loss) pairs; at least one.
        label: what a screen reader says; must be safe as SVG text (letters and digits).

    Returns:
        an `<svg>` element; its colours are the classes `grid`, `axis`, `raw` and `smooth`.
    """
    points = [(float(step), float(loss)) for step, loss in curve if math.isfinite(loss)]
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    logarithmic = min(losses) > 0
    marks = log_ticks(min(losses), max(losses)) if logarithmic else ticks(min(losses), max(losses))
    low, high = min(min(losses), marks[0]), max(max(losses), marks[-1])
    last = max(steps)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)

    def y(loss: float) -> float:
        a, b, value = (math.log(v) if logarithmic else v for v in (low, high, loss))
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - a) / ((b - a) or 1))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for tick in marks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(
            f'<text class="axis" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in ticks(0, last):
        anchor = "end" if x(tick) > WIDTH - RIGHT - 12 else "middle"
        place = f'x="{x(tick):.1f}" y="{HEIGHT - 12}" text-anchor="{anchor}"'
        parts.append(f'<text class="axis" {place}>{tick:,.0f}</text>')
    for name, values in (("raw", losses), ("smooth", smoothed(losses))):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, values, strict=True))
        parts.append(f'<polyline class="{name}" points="{path}"/>')
    if len(points) == 1:  # no line shows it
        parts.append(f'<circle class="dot" cx="{x(steps[0]):.1f}" cy="{y(losses[0]):.1f}" r="2.4"/>')
    return "".join([*parts, "</svg>"])
