"""Line charts as SVG text: no script, no clock, colours from the page's style sheet."""

import math
from collections.abc import Sequence

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
    ticks = _log_ticks(min(losses), max(losses)) if logarithmic else _ticks(min(losses), max(losses))
    low, high = min(min(losses), ticks[0]), max(max(losses), ticks[-1])
    last = max(steps)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)

    def y(loss: float) -> float:
        a, b, value = (math.log(v) if logarithmic else v for v in (low, high, loss))
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - a) / ((b - a) or 1))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(
            f'<text class="axis" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in _ticks(0, last):
        anchor = "end" if x(tick) > WIDTH - RIGHT - 12 else "middle"
        place = f'x="{x(tick):.1f}" y="{HEIGHT - 12}" text-anchor="{anchor}"'
        parts.append(f'<text class="axis" {place}>{tick:,.0f}</text>')
    for name, values in (("raw", losses), ("smooth", smoothed(losses))):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, values, strict=True))
        parts.append(f'<polyline class="{name}" points="{path}"/>')
    return "".join([*parts, "</svg>"])


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a tenth of the values (narrower at both ends, so without lag)."""
    half = len(values) // 20 + 1
    result = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        result.append(sum(window) / len(window))
    return result


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that lie within low..high."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span))
    step = next(s * power for s in (0.1, 0.2, 0.5, 1, 2, 5) if span / (s * power) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def _log_ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2, 5 x 10^n around low..high; powers of ten alone over more than two decades."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 100 else (1,)
    ticks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
    below, above = [t for t in ticks if t <= low], [t for t in ticks if t >= high]
    return [t for t in ticks if below[-1] <= t <= above[0]] if below and above else ticks
