"""Quality against alignment over guidance scales (the paper's Fig. 20).

From sample sets that differ in nothing else: prompts and the noise of each picture are the same at every
scale.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_core.artifacts.card import fingerprint
from pixart_core.charts import WIDTH as CHART_WIDTH
from pixart_core.charts import ticks
from pixart_core.evaluation.report_sections import DISTANCES, T9
from pixart_core.evaluation.sample_set import SampleSet

HEIGHT = 260
LEFT, RIGHT, TOP, BOTTOM = 56, 18, 16, 40
QUALITY = ("fid", "fd-dinov2", "cmmd", "kid", "frechet", "kernel")


def guidance_curves(
    metrics: Mapping[str, Mapping[str, Any]], sets: Sequence[SampleSet]
) -> list[dict[str, Any]]:
    """A curve for each pair of a CLIP score and a distance that all sets of one family have.

    Returns:
        [{"x": CLIP protocol, "y": distance protocol, "points": [{"samples", "guidance_scale", "x", "x_ci95",
        "y", "y_ci95"}], "partial": whether samples were left out}], points by guidance; empty without two
        scales of the same prompts and noise.
    """
    curves = []
    for family in _families(sets):
        scales = [_scale(samples) for samples in family]
        common = set.intersection(*(set(metrics[samples.name]) for samples in family))
        clips = sorted(protocol for protocol in common if protocol.startswith("clip/"))
        distances = [p for kind in QUALITY for p in sorted(common) if p.split("/")[0] == kind]
        for x, y in itertools.product(clips, distances):
            points = [
                _point(samples.name, scale, metrics[samples.name][x], metrics[samples.name][y])
                for scale, samples in sorted(zip(scales, family, strict=True), key=lambda pair: pair[0])
            ]
            partial = any(samples.partial for samples in family)
            curves.append({"x": x, "y": y, "points": points, "partial": partial})
    return curves


def _families(sets: Sequence[SampleSet]) -> list[list[SampleSet]]:
    """Sets that differ in their guidance scale alone, at least two scales a family."""
    families: dict[str, list[SampleSet]] = {}
    for samples in sets:
        options = {name: value for name, value in samples.card.options.items() if name != "guidance_scale"}
        drawn = [[sample.prompt, sample.seed, sample.height, sample.width] for sample in samples.samples]
        key = fingerprint([options, dict(samples.card.inputs), drawn])
        if "guidance_scale" in samples.card.options and _has_one_scale(samples):
            families.setdefault(key, []).append(samples)
    kept = []
    for family in families.values():
        scales = [_scale(samples) for samples in family]
        if len(scales) > 1 and len(set(scales)) == len(scales):
            kept.append(family)
    return kept


def _has_one_scale(samples: SampleSet) -> bool:
    """Whether no prompt brought a guidance scale of its own."""
    return {sample.guidance_scale for sample in samples.samples} <= {None, _scale(samples)}


def _scale(samples: SampleSet) -> float:
    return float(samples.card.options["guidance_scale"])


def _point(name: str, scale: float, clip: Mapping[str, Any], distance: Mapping[str, Any]) -> dict[str, Any]:
    se, value = distance["jackknife_se"], distance["value"]
    return {
        "samples": name,
        "guidance_scale": scale,
        "x": clip["score"],
        "x_ci95": clip["ci95"],
        "y": value,
        "y_ci95": None if se is None else [round(value - T9 * se, 6), round(value + T9 * se, 6)],
    }


def curve_chart(curve: Mapping[str, Any]) -> str:
    """The curve as `<svg>`: points in the order of guidance, each with both intervals and its scale."""
    points = curve["points"]
    xs = [bound for point in points for bound in (point["x"], *point["x_ci95"])]
    ys = [bound for point in points for bound in (point["y"], *(point["y_ci95"] or ()))]
    (x_low, x_high), (y_low, y_high) = _range(xs), _range(ys)

    def place_x(value: float) -> float:
        return LEFT + (CHART_WIDTH - LEFT - RIGHT) * (value - x_low) / (x_high - x_low)

    def place_y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - y_low) / (y_high - y_low))

    title, _, _ = DISTANCES[curve["y"].split("/")[0]]
    parts = [f'<svg viewBox="0 0 {CHART_WIDTH} {HEIGHT}" role="img" aria-label="{title} over CLIP score">']
    for tick in ticks(y_low, y_high, most=5):
        y = place_y(tick)
        parts.append(_line("grid", LEFT, y, CHART_WIDTH - RIGHT, y))
        parts.append(_text("axis", LEFT - 6, y + 3.5, "end", f"{tick:g}"))
    for tick in ticks(x_low, x_high, most=4):
        parts.append(_text("axis", place_x(tick), HEIGHT - BOTTOM + 16, "middle", f"{tick:g}"))
    parts.append(_text("axis", (LEFT + CHART_WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", "CLIP score"))
    path = " ".join(f"{place_x(point['x']):.1f},{place_y(point['y']):.1f}" for point in points)
    parts.append(f'<polyline class="smooth" points="{path}"/>')
    for point in points:
        x, y = place_x(point["x"]), place_y(point["y"])
        low, high = (place_x(bound) for bound in point["x_ci95"])
        parts.append(_line("error", low, y, high, y))
        if point["y_ci95"] is not None:
            low, high = (place_y(bound) for bound in point["y_ci95"])
            parts.append(_line("error", x, low, x, high))
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        parts.append(_text("axis", x + 6, y - 6, "start", f"{point['guidance_scale']:g}"))
    return "".join([*parts, "</svg>"])


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(style: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
