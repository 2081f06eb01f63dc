"""Does a generated picture show what its caption says? Scores of the shapes benchmark.

Every score is published beside its null: what the same pictures score against the prompts of other
pictures. A detector or a metric that always says yes therefore scores zero.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from pixart_core.data.shapes import ARRANGEMENTS, Scene
from pixart_core.errors import UserError
from pixart_core.evaluation.shapes_detect import Detection, arrangement_of, relation_of
from pixart_core.seeding import derive_seed

NULL_ROUNDS = 16  # prompts that each picture is compared with for the null


@dataclass(frozen=True)
class Score:
    """A score, its null and their difference.

    Attributes:
        score: mean over the `n` samples that the metric applies to, in 0..1.
        null: the same for shuffled prompts.
        exact_minus_null: score - null.
        ci95: bootstrap interval of `exact_minus_null`, prompts resampled; where all samples are right, or
            none is, it goes as far as the exact interval of a share does.
    """

    score: float
    null: float
    exact_minus_null: float
    ci95: tuple[float, float]
    n: int


def score_shapes(
    truths: Sequence[Scene],
    detections: Sequence[Detection],
    prompts: Sequence[str],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Score what was detected in each picture against the scene of its prompt.

    Args:
        prompts: samples of one prompt are resampled together by the bootstrap.

    Returns:
        {metric: Score as a dict} for every metric of `METRICS` that applies to some sample.

    Raises:
        UserError: fewer than two different prompts (no null can be made).
    """
    assert len(truths) == len(detections) == len(prompts), "one detection and one prompt a sample"
    _, firsts, groups = np.unique(np.array(prompts), return_index=True, return_inverse=True)
    if len(firsts) < 2:
        raise UserError("the shapes benchmark needs at least 2 different prompts: its null shuffles them")
    nulls = _other_prompts(truths, firsts, groups, derive_seed(seed, "shapes null"))

    scores = {}
    for name, metric in METRICS.items():
        real = _column(metric, truths, detections)
        rounds = np.stack([_column(metric, shuffled, detections) for shuffled in nulls])
        if np.isfinite(real).any():
            scores[name] = asdict(
                _score(real, rounds, groups, bootstrap, derive_seed(seed, "bootstrap", name))
            )
    return scores


def _other_prompts(truths: Sequence[Scene], firsts: Any, groups: Any, seed: int) -> list[list[Scene]]:
    """Truths of other prompts for every sample, `NULL_ROUNDS` times (less if there are fewer prompts).

    Shifts along one random order of the prompts: in no round does a picture meet its own.
    """
    count = len(firsts)
    order = np.random.default_rng(seed).permutation(count)
    rank = np.argsort(order)
    return [
        [truths[firsts[order[(rank[group] + shift) % count]]] for group in groups]
        for shift in range(1, min(NULL_ROUNDS, count - 1) + 1)
    ]


def mistakes(truth: Scene, found: Detection) -> list[str]:
    """Names of the metrics in which a picture misses its prompt; empty if it is exact."""
    parts = ("background", "count", "color", "shape", "size", "position", "relation")
    values = {name: METRICS[name](truth, found) for name in parts}
    wrong = [name for name, value in values.items() if value is not None and value < 1.0]
    if not wrong and not exact(truth, found):
        return ["binding"]
    return wrong


def exact(truth: Scene, found: Detection) -> float:
    """Everything is right: background, objects with all attributes, and where they are."""
    if truth.background != found.background or len(truth.objects) != len(found.objects):
        return 0.0
    orders = itertools.permutations(found.objects)
    return float(any(_matches(truth, objects) for objects in orders))


def _matches(truth: Scene, objects: tuple[Any, ...]) -> bool:
    for wanted, seen in zip(truth.objects, objects, strict=True):
        if (wanted.size, wanted.color, wanted.shape) != seen.name:
            return False
    if truth.relation is None:
        return objects[0].position == truth.objects[0].position
    found = arrangement_of(*objects) if truth.relation in ARRANGEMENTS else relation_of(*objects)
    return found == truth.relation


def _exact_single(truth: Scene, found: Detection) -> float | None:
    return exact(truth, found) if truth.relation is None else None


def _exact_two(truth: Scene, found: Detection) -> float | None:
    return None if truth.relation is None else exact(truth, found)


def _share_of(attribute: str) -> Callable[[Scene, Detection], float | None]:
    """Share of objects whose `attribute` was found; missing and surplus objects count as wrong."""

    def share(truth: Scene, found: Detection) -> float:
        wanted = Counter(getattr(thing, attribute) for thing in truth.objects)
        seen = Counter(getattr(thing, attribute) for thing in found.objects)
        return (wanted & seen).total() / max(wanted.total(), seen.total())

    return share


def _position(truth: Scene, found: Detection) -> float | None:
    if truth.relation is not None:
        return None
    return float(len(found.objects) == 1 and found.objects[0].position == truth.objects[0].position)


def _count(truth: Scene, found: Detection) -> float:
    return float(len(truth.objects) == len(found.objects))


def _background(truth: Scene, found: Detection) -> float:
    return float(truth.background == found.background)


def _relation(truth: Scene, found: Detection) -> float | None:
    """Right relation between two objects that can be told apart, whatever else is wrong with them."""
    if truth.relation is None:
        return None
    if len(found.objects) != 2:
        return 0.0
    first, second = found.objects
    if truth.relation in ARRANGEMENTS:
        return float(arrangement_of(first, second) == truth.relation)
    straight, swapped = _likeness(truth, first, second), _likeness(truth, second, first)
    if straight == swapped:
        return 0.0
    pair = (first, second) if straight > swapped else (second, first)
    return float(relation_of(*pair) == truth.relation)


def _likeness(truth: Scene, first: Any, second: Any) -> int:
    """How many attributes agree; -1 if an object has neither the colour nor the shape of its partner."""
    total = 0
    for wanted, seen in zip(truth.objects, (first, second), strict=True):
        same = [getattr(wanted, name) == getattr(seen, name) for name in ("color", "shape", "size")]
        if not any(same[:2]):
            return -1
        total += sum(same)
    return total


METRICS: dict[str, Callable[[Scene, Detection], float | None]] = {
    "exact": exact,
    "exact_single": _exact_single,
    "exact_two": _exact_two,
    "color": _share_of("color"),
    "shape": _share_of("shape"),
    "size": _share_of("size"),
    "position": _position,
    "count": _count,
    "relation": _relation,
    "background": _background,
}


def _column(
    metric: Callable[[Scene, Detection], float | None],
    truths: Sequence[Scene],
    detections: Sequence[Detection],
) -> Float[np.ndarray, " n"]:
    values = [metric(truth, found) for truth, found in zip(truths, detections, strict=True)]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _score(
    real: Float[np.ndarray, " n"],
    null: Float[np.ndarray, "rounds n"],
    groups: Any,
    bootstrap: int,
    seed: int,
) -> Score:
    """Means, and the interval of their difference over resampled groups of samples."""

    def group_sums(values: Float[np.ndarray, "rounds n"]) -> Float[np.ndarray, "two groups"]:
        """Sum and count of the applicable values of each group."""
        sums = np.zeros((2, groups.max() + 1))
        np.add.at(sums[0], groups, np.nan_to_num(values).sum(0))
        np.add.at(sums[1], groups, np.isfinite(values).sum(0))
        return sums

    sums = np.stack([group_sums(real[None]), group_sums(null)])  # (real|null, sum|count, groups)
    means = _ratio(sums.sum(-1))
    size = sums.shape[-1]
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), bootstrap)
    resampled = _ratio(np.einsum("kcg,bg->bkc", sums, weights))
    low, high = np.nanquantile(resampled[:, 0] - resampled[:, 1], [0.025, 0.975])
    unseen = _unseen(int((sums[0, 1] > 0).sum()))
    if means[0] == 1:
        low = min(low, means[0] - means[1] - unseen)
    elif means[0] == 0:
        high = max(high, means[0] - means[1] + unseen)
    return Score(
        score=_rounded(means[0]),
        null=_rounded(means[1]),
        exact_minus_null=_rounded(means[0] - means[1]),
        ci95=(_rounded(low), _rounded(high)),
        n=int(np.isfinite(real).sum()),
    )


def _unseen(groups: int) -> float:
    """How frequent another outcome may be when all groups had the same one: resampling them never shows it.

    The end of the exact 95 % interval of a share (Clopper & Pearson, 1934) at 0.
    """
    return 1 - 0.025 ** (1 / groups) if groups else 0.0


def _ratio(sums: Float[np.ndarray, "... two"]) -> Float[np.ndarray, "..."]:
    return sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.nan)


def _rounded(value: float) -> float:
    return round(float(value), 4)
