"""From the scores of images to those of a category: mean, interval over prompts, null."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from pixart_core.evaluation.compbench.layout import PromptImages
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.seeding import derive_seed

DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Scored:
    """One image.

    Attributes:
        score: against its own prompt.
        null: against the prompt that `others` gives it; None where there is only one prompt.
        reasons: what made up the score, for a person.
    """

    score: float
    null: float | None
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How scores came about.

    Attributes:
        id: scores of different ids do not compare.
        comparable: whether published numbers are of this protocol.
    """

    id: str
    comparable: bool


def others(prompts: Sequence[Prompt], seed: int) -> list[Prompt] | None:
    """Another prompt for each of `prompts`, none its own: a step along one random order of them all.

    None for fewer than two.
    """
    count = len(prompts)
    if count < 2:
        return None
    order = np.random.default_rng(derive_seed(seed, "compbench null", prompts[0].category)).permutation(count)
    rank = np.argsort(order)
    return [prompts[order[(rank[place] + 1) % count]] for place in range(count)]


def summarise(
    images: Sequence[PromptImages],
    scored: Sequence[Sequence[Scored]],
    protocol: Protocol,
    *,
    ceiling: float | None,
    partial: bool,
) -> dict[str, Any]:
    """The result of a category, as `score_compbench` returns it.

    Args:
        scored: of each image of each prompt, in the order of `images`.
    """
    scores = [np.array([image.score for image in group]) for group in scored]
    has_null = all(image.null is not None for group in scored for image in group)
    nulls = [np.array([image.null for image in group], dtype=np.float64) for group in scored]
    gains = [own - other for own, other in zip(scores, nulls, strict=True)]
    return {
        "protocol": protocol.id,
        "comparable": protocol.comparable,
        "score": _mean(scores),
        # A cosine may be less than 0, all other scores are shares.
        "ci95": interval(scores, least=min(0.0, -1.0 * any((group < 0).any() for group in scores))),
        "n": sum(map(len, scores)),
        "n_prompts": len(scores),
        "null": _mean(nulls) if has_null else None,
        "score_minus_null": _mean(gains) if has_null else None,
        "score_minus_null_ci95": interval(gains) if has_null else None,
        "ceiling": None if ceiling is None else round(ceiling, DIGITS),
        "partial": partial,
        "prompts": [
            {
                "prompt": entry.prompt.text,
                "score": _mean([own]),
                "null": _mean([other]) if has_null else None,
                "images": [
                    {
                        "file": sample.file,
                        "score": round(image.score, DIGITS),
                        "reasons": list(image.reasons),
                    }
                    for sample, image in zip(entry.samples, group, strict=True)
                ],
            }
            for entry, group, own, other in zip(images, scored, scores, nulls, strict=True)
        ],
    }


def interval(groups: Sequence[Float[np.ndarray, " images"]], least: float = -1.0) -> list[float] | None:
    """95 % interval of the mean over all values, of which those of a group (a prompt) stand together.

    It ends where scores do, at `least` and 1.

    Student's t over groups; with groups of one size that of their means, else by the ratio estimator's
    residuals. None for fewer than two groups.
    """
    count = len(groups)
    if count < 2:
        return None
    sums, sizes = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
    mean = sums.sum() / sizes.sum()
    residuals = (sums - mean * sizes) / sizes.mean()
    error = np.sqrt((residuals**2).sum() / (count - 1) / count)
    half = stats.t.ppf(0.975, count - 1) * error
    return [round(max(float(mean - half), least), DIGITS), round(min(float(mean + half), 1.0), DIGITS)]


def _mean(groups: Sequence[Float[np.ndarray, " images"]]) -> float:
    return round(float(np.concatenate(groups).mean()), DIGITS)
