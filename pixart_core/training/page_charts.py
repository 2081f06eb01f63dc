"""The curves of a training as charts for the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_core.charts import Line, binned, line_chart, smoothed
from pixart_core.recipe.training import TrainStep
from pixart_core.training.trackers import band_names

# Of a log row and its pace.
CURVES = ("loss", "grad_norm", "lr", "images_per_second", "data_wait", "mfu", "tflops")
Points = Sequence[tuple[float, float]]
MOST = 400  # points of a line
DOTTED = 40  # validations that are drawn as dots
LEGEND = 10  # bands that the legend names


def curve_charts(
    step: TrainStep, curves: Mapping[str, Points], validated: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Title, note, SVG and legend of every chart.

    Args:
        curves: (step, value) by name, of `CURVES`.
        validated: rows of `validation.jsonl`.
    """
    charts = [_loss(curves["loss"], validated)]
    if validated:
        charts.append(_bands([row for row in validated if row["weights"] == "ema"]))
    clipped = f"before clipping at {step.max_grad_norm:g}"
    charts.append(_chart("Gradient norm", clipped, _noisy(curves["grad_norm"])))
    charts.append(_chart("Learning rate", "", [Line(binned(curves["lr"], MOST))], from_zero=True))
    speeds = (
        ("images_per_second", "Images per second", "in optimiser steps", 1.0),
        ("data_wait", "Waiting for data", "% of a step", 100.0),
        ("mfu", "Model FLOP utilisation", "% of the GPU's 16-bit peak", 100.0),
        ("tflops", "TFLOP/s", "of the model, on each device", 1.0),
    )
    for name, title, note, factor in speeds:
        if curves.get(name) and not (name == "tflops" and curves.get("mfu")):
            lines = _noisy([(x, factor * y) for x, y in curves[name]])
            charts.append(_chart(title, note, lines, from_zero=True))
    return charts


def _chart(title: str, note: str, lines: Sequence[Line], *, from_zero: bool = False) -> dict[str, Any]:
    svg = line_chart(lines, f"{title} {note}".strip(), from_zero=from_zero)
    return {"title": title, "note": note, "svg": svg, "legend": []}


def _noisy(points: Points) -> list[Line]:
    """Every value faintly, and smoothed."""
    kept = binned(points, MOST)
    means = smoothed([y for _, y in kept])
    return [Line(kept, "raw"), Line([(x, y) for (x, _), y in zip(kept, means, strict=True)], "smooth")]


def _loss(points: Points, validated: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lines, legend = _noisy(points), [_entry("smooth", "training", points)]
    names = {"ema": ("second", "validation, averaged weights"), "raw": ("third", "validation, raw weights")}
    for weights, (style, name) in names.items():
        found = [(row["step"], row["loss"]) for row in validated if row["weights"] == weights]
        if found:
            lines.append(Line(binned(found, MOST), style, dots=len(found) <= DOTTED))
            legend.append(_entry(style, name, found))
    return _chart("Loss", "", lines) | {"legend": legend}


def _bands(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line for each band of timesteps, from little noise (blue) to much (red)."""
    if not rows:
        return _chart("Validation loss by timestep", "", [])
    edges = rows[-1]["edges"]  # another number of bands begins another chart
    alike = [row for row in rows if row["edges"] == edges]
    names = band_names(edges)
    last = max(1, len(names) - 1)
    colours = [_colour(band / last) for band in range(len(names))]
    lines, legend = [], []
    every = -(-len(names) // LEGEND)
    for band, (name, colour) in enumerate(zip(names, colours, strict=True)):
        points = [(row["step"], row["bands"][band]) for row in alike]
        lines.append(Line(binned(points, MOST), "band", colour, dots=len(points) <= DOTTED))
        if band % every == 0 or band == last:
            legend.append({"style": "", "colour": colour, "name": name, "value": f"{points[-1][1]:.4g}"})
    note = "averaged weights; timesteps 0 (clean) to 999 (noise)"
    return _chart("Validation loss by timestep", note, lines) | {"legend": legend}


def _colour(share: float) -> str:
    """From blue over green to red; yellow and green are darker, to be seen on white as on black."""
    return f"hsl({250 - 245 * share:.0f} 65% {56 - 14 * math.sin(math.pi * share):.0f}%)"


def _entry(style: str, name: str, points: Points) -> dict[str, Any]:
    return {"style": style, "colour": "", "name": name, "value": f"{points[-1][1]:.4g}" if points else ""}
