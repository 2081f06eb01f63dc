"""`bench: shapes`: what detectors see in generated shapes, against what the prompts say."""

from collections.abc import Mapping, Sequence
from typing import Any

from pixart_core.evaluation.outcome import Outcome, Verdict
from pixart_core.evaluation.sample_set import SampleSet, true_scenes
from pixart_core.evaluation.shapes import exact, mistakes, score_shapes
from pixart_core.evaluation.shapes_detect import Detection, describe
from pixart_core.recipe.evaluate import EvaluateStep

EXACT = "shapes exact"  # how pairs of sample sets name the metric that they are compared in


def shapes_results(
    outcome: Outcome,
    step: EvaluateStep,
    sets: Sequence[SampleSet],
    found: Mapping[str, Sequence[Detection]],
) -> None:
    """Enter scores and what is wrong with each picture into `outcome`.

    Args:
        found: what was detected in each picture of each set.

    Raises:
        UserError: prompts without ground truth, or fewer than two different ones.
    """
    for samples in sets:
        truths, seen = true_scenes(samples), found[samples.name]
        outcome.metrics[samples.name]["shapes"] = score_shapes(
            truths, seen, samples.prompts, bootstrap=step.bootstrap, seed=step.seed
        )
        outcome.verdicts[samples.name] = [
            Verdict(tuple(mistakes(truth, scene)), describe(scene))
            for truth, scene in zip(truths, seen, strict=True)
        ]
        scores = [exact(truth, scene) for truth, scene in zip(truths, seen, strict=True)]
        outcome.add_prompts(samples, EXACT, _by_prompt(samples, scores, outcome.verdicts[samples.name]))


def _by_prompt(
    samples: SampleSet, scores: Sequence[float], verdicts: Sequence[Verdict]
) -> list[dict[str, Any]]:
    """Rows for the galleries of worst and best prompts, with what is wrong and what is seen instead."""
    rows: dict[str, dict[str, Any]] = {}
    for sample, score, verdict in zip(samples.samples, scores, verdicts, strict=True):
        row = rows.setdefault(sample.prompt, {"prompt": sample.prompt, "null": None, "images": []})
        reasons = [*(f"wrong {name}" for name in verdict.wrong), f"seen: {verdict.seen}"]
        row["images"].append({"file": sample.file, "score": score, "reasons": reasons})
    for row in rows.values():
        row["score"] = round(sum(image["score"] for image in row["images"]) / len(row["images"]), 4)
    return list(rows.values())
