"""`bench: shapes`: what detectors see in generated shapes, against what the prompts say."""

from collections.abc import Mapping, Sequence

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
        outcome.values.setdefault(EXACT, {})[samples.name] = {
            sample.file: exact(truth, scene)
            for sample, truth, scene in zip(samples.samples, truths, seen, strict=True)
        }
