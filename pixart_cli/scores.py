"""What benchmarks measured, in lines for a person; everything else is in the report and in --json."""

import math
from collections.abc import Iterator, Mapping
from typing import Any


def scores_in_words(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name of each sample set, and below it its scores.

    A distance stands with its standard error; a score with its gain over the null and the gain's interval.

    Args:
        metrics: {sample set: {benchmark or protocol id: result}}, as `run_evaluation` returns it.
    """
    lines = []
    for samples, benches in metrics.items():
        scores = {name: told for bench, found in benches.items() for name, told in _scores(bench, found)}
        width = max(map(len, scores), default=0)
        lines += [samples, *(f"  {name:<{width}}  {told}" for name, told in scores.items())]
    return lines


def evaluation_in_words(result: Mapping[str, Any]) -> str:
    """The result of `pixart evaluate`."""
    lines = scores_in_words(result.get("metrics", {}))
    return "\n".join([*lines, f"report: {result['report']}"] if "report" in result else lines)


def _scores(bench: str, found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, words) of each score that a benchmark gave."""
    partial = found.get("partial")
    suffix = f" ({partial['scored']} of {partial['of']} samples)" if partial else ""
    if "value" in found:
        yield bench, f"{_with_error(found['value'], found.get('jackknife_se'))}{suffix}"
        return
    within = found.get("categories", found).items()
    named = {bench: found} if "score" in found else {f"{bench}/{name}": score for name, score in within}
    for name, score in named.items():
        if "score" in score:
            of_shapes = "exact_minus_null" in score
            gain = score["exact_minus_null" if of_shapes else "score_minus_null"]
            bounds = score.get("ci95" if of_shapes else "score_minus_null_ci95")
            between = f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else ""
            above = "without a null" if gain is None else f"{gain:+.3f}{between} against its null"
            whole = suffix or (" (partial)" if score.get("partial") is True else "")
            yield name, f"{score['score']:.3f}, {above}{whole}"


def _with_error(value: float, error: float | None) -> str:
    """Both to the second digit of the standard error, where it has one."""
    if not error or not math.isfinite(error):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
