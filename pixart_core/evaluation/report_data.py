"""What the report says, as plain data: `report.json`, and what the template of `report.html` reads."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixart_core.artifacts.card import Card
from pixart_core.evaluation.guidance_curve import guidance_curves
from pixart_core.evaluation.outcome import Outcome, Verdict
from pixart_core.evaluation.report_sections import clip_tables, galleries, paper_tables
from pixart_core.evaluation.sample_set import SampleSet, TrainingRun

CURVE_POINTS = 400
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow")
ATTRIBUTES = ("background", "count", "color", "shape", "size", "position", "relation")
# What a score means, in the words of the report.
EXPLANATIONS = {
    "exact": ("Exact match", "everything below is right at once"),
    "exact_single": ("Exact, one object", "prompts with a single object"),
    "exact_two": ("Exact, two objects", "attributes at the right object, and relation"),
    "color": ("Color", "share of objects"),
    "shape": ("Shape", "share of objects"),
    "size": ("Size", "share of objects"),
    "position": ("Position", "single objects: one of nine places"),
    "count": ("Count", "number of objects"),
    "relation": ("Relation", "two objects: where one is to the other"),
    "background": ("Background", "white, black or gray"),
}


def build_report(
    outcome: Outcome,
    sets: Sequence[SampleSet],
    runs: Sequence[TrainingRun],
    *,
    card: Card,
    pipeline: str | None,
) -> dict[str, Any]:
    """Everything that `report.json` holds: no times of day and no absolute paths of inputs.

    Args:
        pipeline: where the pipeline folder is, as the report should name it.
    """
    metrics, verdicts = outcome.metrics, outcome.verdicts
    return {
        "schema_version": 2,
        "pixart_version": card.pixart_version,
        "verdict": verdict_in_words(metrics),
        "metrics": {name: dict(values) for name, values in metrics.items()},
        "partial": {
            samples.name: {"scored": len(samples.samples), "of": samples.whole}
            for samples in sets
            if samples.partial
        },
        "reference": outcome.reference,
        "paired": outcome.paired,
        "curves": guidance_curves(metrics, sets),
        "galleries": galleries(outcome),
        "prompts": outcome.prompts,
        "missing": outcome.missing,
        "paper": paper_tables(metrics),
        "sample_sets": {samples.name: _sample_set(samples, verdicts.get(samples.name)) for samples in sets},
        "runs": {run.name: _run(run) for run in runs},
        "pipeline": pipeline,
        "evaluation": {"options": dict(card.options), "inputs": dict(card.inputs)},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def verdict_in_words(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The outcome in a few sentences that need no table."""
    sentences = []
    for name, values in metrics.items():
        scores = values.get("shapes", {})
        if "exact" not in scores:
            continue
        exact = scores["exact"]
        right = round(exact["score"] * exact["n"])
        sentences.append(
            f"In {name}, {right} of {exact['n']} pictures ({_percent(exact['score'])}) show exactly what "
            f"their prompt asks for; held against other pictures' prompts, {_percent(exact['null'])} do."
        )
        weakest = min((a for a in ATTRIBUTES if a in scores), key=lambda a: scores[a]["score"])
        if scores[weakest]["score"] < 1:
            sentences.append(
                f"The weakest attribute is {weakest} ({_percent(scores[weakest]['score'])} right)."
            )
        else:
            sentences.append("No single attribute was ever wrong.")
    for table in clip_tables(metrics):
        sentences += [_clip_in_words(row) for row in table["rows"]]
    sentences += _compbench_in_words(metrics)
    if not sentences:
        return (
            "No benchmark in this report tells whether the pictures follow their prompts: "
            "look at the samples below."
        )
    return " ".join(sentences)


def _clip_in_words(row: Mapping[str, Any]) -> str:
    if row["null"] is None:
        return (
            f"The CLIP score of {row['samples']} is {_figure(row['score'])}; with one prompt it has no null."
        )
    low, _ = row["score_minus_null_ci95"]
    above = "above" if low > 0 else "not above"
    return (
        f"In {row['samples']}, the CLIP score {_figure(row['score'])} is {above} that of shuffled prompts "
        f"({_figure(row['null'])})."
    )


def _figure(value: float) -> str:
    return f"{value:.4f}".replace("-", "−")


def _compbench_in_words(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    sentences = []
    for name, values in metrics.items():
        categories = values.get("compbench", {}).get("categories", {})
        gains = {category: result["score_minus_null_ci95"] for category, result in categories.items()}
        told = {category: interval[0] > 0 for category, interval in gains.items() if interval}
        if told:
            above = ", ".join(category for category, is_above in told.items() if is_above)
            sentences.append(
                f"In {name}, {sum(told.values())} of {len(told)} categories of T2I-CompBench score above "
                f"shuffled prompts{f' ({above})' if above else ''}."
            )
        elif categories:
            sentences.append(
                f"In {name}, T2I-CompBench was scored on one prompt a category: too few for a null."
            )
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def _sample_set(samples: SampleSet, verdicts: Sequence[Verdict] | None) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for index, sample in enumerate(samples.samples):
        row: dict[str, Any] = {
            "id": sample.id,
            "prompt": sample.prompt,
            "seed": sample.seed,
            "height": sample.height,
            "width": sample.width,
        }
        if verdicts is not None:
            row |= {"wrong": list(verdicts[index].wrong), "seen": verdicts[index].seen}
        rows.append(row)
    sizes = sorted({(sample.height, sample.width) for sample in samples.samples})
    return {
        "count": len(rows),
        "prompts": len({sample.prompt for sample in samples.samples}),
        "sizes": [f"{height}x{width}" for height, width in sizes],
        "options": dict(samples.card.options),
        "inputs": dict(samples.card.inputs),
        "samples": rows,
    }


def _run(run: TrainingRun) -> dict[str, Any]:
    options, details = run.card.options, run.card.details
    model = options.get("model")
    losses = [float(row["loss"]) for row in run.rows]
    last = losses[-max(1, len(losses) // 20) :]
    return {
        "start": f"new, {model['conditioning']}-conditional" if model else "from a checkpoint",
        "steps": details.get("steps", options.get("max_train_steps")),
        "images": details.get("images"),
        "batch": options.get("global_batch_size"),
        "learning_rate": options.get("learning_rate"),
        "optimizer": (options.get("optimizer") or {}).get("kind"),
        "prediction_type": options.get("prediction_type"),
        "seconds": run.rows[-1].get("seconds") if run.rows else None,
        "final_loss": round(sum(last) / len(last), 6) if last else None,
        "curve": _thinned([(int(row["step"]), float(row["loss"])) for row in run.rows]),
        "options": dict(options),
        "inputs": dict(run.card.inputs),
    }


def _thinned(points: list[tuple[int, float]]) -> list[list[float]]:
    """At most `CURVE_POINTS` points: the last step and the mean loss of equal stretches."""
    stretches = np.array_split(np.arange(len(points)), min(CURVE_POINTS, len(points))) if points else []
    return [
        [points[stretch[-1]][0], round(float(np.mean([points[i][1] for i in stretch])), 6)]
        for stretch in stretches
    ]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
