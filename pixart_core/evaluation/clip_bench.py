"""`bench: clip`: the CLIP score of every sample set, its null, and which prompts do worst and best."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.clip_score import ClipScorer, clip_scores, text_embeddings
from pixart_core.evaluation.outcome import Outcome
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.recipe.evaluate import EvaluateStep


def clip_results(
    outcome: Outcome,
    step: EvaluateStep,
    sets: Sequence[SampleSet],
    digests: Mapping[str, Sequence[str]],
    scorer: ClipScorer,
    caches: Caches,
) -> None:
    """Enter the CLIP scores of all sets into `outcome`.

    Args:
        digests: of the samples of each set, whose embeddings are in `caches`.
    """
    protocol = scorer.images.protocol
    images = caches.features(scorer.images.id, scorer.images.dimensions)
    texts = caches.features(f"{scorer.images.id}-texts", scorer.images.dimensions)
    for samples in sets:
        embeddings = text_embeddings(scorer, texts, samples.prompts, step.batch_size)
        different = list(embeddings)
        number = {prompt: index for index, prompt in enumerate(different)}
        prompt_of = np.array([number[prompt] for prompt in samples.prompts])
        scores, values = clip_scores(
            images.gather(digests[samples.name]),
            np.stack([embeddings[prompt] for prompt in different]),
            prompt_of,
            bootstrap=step.bootstrap,
            seed=step.seed,
        )
        scores |= {
            "weights": scorer.images.weights,
            "standard": scorer.images.standard,
            "prompts_cut_off": scorer.cut_off(different),
        }
        outcome.metrics[samples.name][protocol] = scores
        outcome.add_prompts(samples, protocol, _by_prompt(samples, different, prompt_of, values))


def _by_prompt(
    samples: SampleSet, prompts: Sequence[str], prompt_of: np.ndarray, values: np.ndarray
) -> list[dict[str, Any]]:
    rows = []
    for number, prompt in enumerate(prompts):
        members = np.flatnonzero(prompt_of == number)
        images = [
            {"file": samples.samples[at].file, "score": round(float(values[at]), 4), "reasons": []}
            for at in members
        ]
        rows.append(
            {
                "prompt": prompt,
                "score": round(float(values[members].mean()), 4),
                "null": None,
                "images": images,
            }
        )
    return rows
