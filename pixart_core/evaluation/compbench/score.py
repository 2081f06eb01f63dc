"""T2I-CompBench on a sample set: every category beside its null, and what is missing."""

from pathlib import Path
from typing import Any

from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.progress import Progress
from pixart_core.recipe.compbench import CompBenchOptions


def score_compbench(
    samples: SampleSet, options: CompBenchOptions, cache: Path, progress: Progress
) -> dict[str, Any]:
    """Score `samples` in every category that has prompts among them and weights at hand.

    Args:
        cache: folder of scores by image, to which this adds; a killed run continues from it.

    Returns:
        "categories": {category: {"protocol": id, "comparable": whether with the official numbers,
            "score": mean over images, "ci95": [low, high] over prompts, "n": images, "n_prompts",
            "null": the same images against other prompts, "score_minus_null", "score_minus_null_ci95",
            "ceiling": best score that the rules allow, or None, "partial": not all prompts and images,
            "prompts": [{"prompt", "score", "null", "images": [{"file", "score", "reasons"}]}]}}
        "missing": [{"part", "categories", "size", "fix"}]: what could not be scored, and what it takes.

    Raises:
        UserError: an option names what is not there, or no sample has a prompt of the benchmark.
    """
    raise NotImplementedError
