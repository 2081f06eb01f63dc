"""Is one sample set better than another? Differences picture by picture, prompts resampled together."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from pixart_core.evaluation.outcome import Outcome
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.recipe.evaluate import EvaluateStep
from pixart_core.seeding import derive_seed

DIGITS = 4


def pair_pictures(outcome: Outcome, step: EvaluateStep, sets: Sequence[SampleSet]) -> None:
    """Enter the differences between every two sets in every score that both have picture by picture."""
    for protocol, by_set in outcome.values.items():
        for a, b in itertools.combinations([samples for samples in sets if samples.name in by_set], 2):
            first, second = (_column(samples, by_set[samples.name]) for samples in (a, b))
            row = paired_difference(a, b, first, second, step.bootstrap, step.seed)
            if row is not None:
                outcome.paired.append({"protocol": protocol, "a": a.name, "b": b.name, **row})


def _column(samples: SampleSet, values: Mapping[str, float]) -> Float[np.ndarray, " n"]:
    return np.array([values.get(sample.file, np.nan) for sample in samples.samples], dtype=np.float64)


def paired_difference(
    a: SampleSet,
    b: SampleSet,
    values_a: Float[np.ndarray, " n"],
    values_b: Float[np.ndarray, " m"],
    bootstrap: int,
    seed: int,
) -> dict[str, Any] | None:
    """Mean of a - b over pictures of the same prompt, with its 95 % bootstrap interval.

    The k-th picture of a prompt in one set is paired with the k-th in the other; NaN (a metric that does not
    apply) leaves a pair out.

    Returns:
        difference, ci95, whether they can be told apart (0 is outside the interval), n, prompts, and whether
        pictures of a pair also share their noise; None with fewer than two common prompts.
    """
    where = {key: at for at, key in enumerate(_keys(b))}
    pairs = [(at, where[key]) for at, key in enumerate(_keys(a)) if key in where]
    pairs = [(i, j) for i, j in pairs if np.isfinite(values_a[i]) and np.isfinite(values_b[j])]
    prompts = [a.samples[i].prompt for i, _ in pairs]
    different = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    if len(different) < 2:
        return None
    delta = np.array([values_a[i] - values_b[j] for i, j in pairs])
    groups = np.array([different[prompt] for prompt in prompts])
    low, high = _interval(delta, groups, bootstrap, derive_seed(seed, "paired", a.name, b.name))
    return {
        "difference": round(float(delta.mean()), DIGITS),
        "ci95": [round(low, DIGITS), round(high, DIGITS)],
        "distinguishable": low > 0 or high < 0,
        "n": len(pairs),
        "prompts": len(different),
        "same_noise": all(a.samples[i].seed == b.samples[j].seed for i, j in pairs),
    }


def _keys(samples: SampleSet) -> list[tuple[str, int]]:
    """(prompt, how many of it came before) of each sample."""
    seen: Counter[str] = Counter()
    keys = []
    for sample in samples.samples:
        keys.append((sample.prompt, seen[sample.prompt]))
        seen[sample.prompt] += 1
    return keys


def _interval(
    values: Float[np.ndarray, " n"], groups: np.ndarray, bootstrap: int, seed: int
) -> tuple[float, float]:
    size = int(groups.max()) + 1
    sums, counts = np.bincount(groups, values, minlength=size), np.bincount(groups, minlength=size)
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), bootstrap)
    low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975])
    return float(low), float(high)
