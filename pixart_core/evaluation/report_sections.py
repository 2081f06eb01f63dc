"""Parts of the report as plain data, each of one protocol: what pages and Markdown lay out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_core.evaluation import paper_table2
from pixart_core.evaluation.compbench import paper_table3
from pixart_core.evaluation.outcome import Outcome

SHOWN_PROMPTS = 6  # worst and best ones of each score
T9 = 2.262  # 97.5 % quantile of t with 9 degrees of freedom: ten jackknife groups
# What a distance is called, what it is, and how many digits say something.
DISTANCES = {
    "fid": ("FID", "Inception features of 2015 (the TensorFlow port)", 2),
    "kid": ("KID", "the same features, cubic kernel, unbiased over all pairs", 5),
    "cmmd": ("CMMD", "CLIP embeddings, Gaussian kernel, × 1000", 3),
    "fd-dinov2": ("FD-DINOv2", "Fréchet distance of DINOv2's class token", 2),
    "frechet": ("Fréchet distance, not FID", "features as named; compares only with the same", 4),
    "kernel": ("Kernel distance, not KID", "features as named; compares only with the same", 5),
}

STANDARD = ("cmmd", "fd-dinov2")  # the others are named otherwise where the network is another


def distance_tables(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One table a protocol: {"protocol", "title", "about", "digits", "columns" that a row has, "rows"}."""
    tables: dict[str, dict[str, Any]] = {}
    for name, results in metrics.items():
        for protocol, result in results.items():
            kind = protocol.split("/")[0]
            if kind not in DISTANCES:
                continue
            title, about, digits = DISTANCES[kind]
            if not result["standard"] and kind in STANDARD:
                title, digits = f"{title} formula on another network", 5
            table = tables.setdefault(
                protocol,
                {"protocol": protocol, "title": title, "about": about, "digits": digits, "rows": []},
            )
            table["rows"].append({"samples": name, "ci95": _around(kind, result), **result})
    for table in tables.values():
        table["columns"] = sorted({column for row in table["rows"] for column in row})
    return list(tables.values())


def _around(kind: str, result: Mapping[str, Any]) -> list[float] | None:
    se = result.get("jackknife_se")
    if se is None:
        return None
    # Only the unbiased kernel distances may be less than 0.
    least = -math.inf if kind in ("kid", "kernel") else 0.0
    return [max(result["value"] - T9 * se, least), result["value"] + T9 * se]


def clip_tables(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One table a convention: {"protocol", "title", "rows"}."""
    tables: dict[str, dict[str, Any]] = {}
    for name, results in metrics.items():
        for protocol, result in results.items():
            if protocol.startswith("clip/"):
                title = "CLIP score" if result["standard"] else "CLIP score of another network"
                table = tables.setdefault(protocol, {"protocol": protocol, "title": title, "rows": []})
                table["rows"].append({"samples": name, **result})
    return list(tables.values())


def compbench_tables(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One table a category and protocol: {"category", "protocol", "comparable", "rows"}."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for name, results in metrics.items():
        for category, result in results.get("compbench", {}).get("categories", {}).items():
            table = tables.setdefault(
                (category, result["protocol"]),
                {
                    "category": category,
                    "protocol": result["protocol"],
                    "comparable": result["comparable"],
                    "rows": [],
                },
            )
            table["rows"].append({"samples": name, **result})
    return list(tables.values())


def galleries(outcome: Outcome) -> dict[str, dict[str, dict[str, list[dict[str, Any]]]]]:
    """{sample set: {protocol: {"worst", "best"}}}: prompts by score, each with one picture and reasons."""
    return {
        name: {protocol: _extremes(rows) for protocol, rows in by_protocol.items() if rows}
        for name, by_protocol in outcome.prompts.items()
    }


def _extremes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    # Among equals, first those that more is said against.
    order = sorted(
        (row for row in rows if row["images"]),
        key=lambda row: (row["score"], -_said(row), row["prompt"]),
    )
    count = min(SHOWN_PROMPTS, len(order) // 2 or 1)

    def shown(row: Mapping[str, Any], worst: bool) -> dict[str, Any]:
        choose = min if worst else max
        image = choose(row["images"], key=lambda image: image["score"])
        return {
            "prompt": row["prompt"],
            "score": row["score"],
            "file": image["file"],
            "image_score": image["score"],
            "reasons": list(image.get("reasons", [])),
        }

    return {
        "worst": [shown(row, True) for row in order[:count]],
        "best": [shown(row, False) for row in reversed(order[-count:])] if len(order) > 1 else [],
    }


def _said(row: Mapping[str, Any]) -> float:
    """Reasons an image of a prompt."""
    return sum(len(image.get("reasons", [])) for image in row["images"]) / len(row["images"])


def paper_tables(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The paper's rows where we have something to hold beside them, and why ours may not stand among them.

    Returns:
        "fid": {"rows", "note", "ours": [{"samples", "protocol", "value", ..., "reasons"}]} and "compbench":
        {"columns", "rows", "note", "ours": [{"samples", "category", ..., "reasons"}]}; a part that nothing
        was measured for is left out.
    """
    parts: dict[str, Any] = {}
    ours = [
        {
            "samples": name,
            "protocol": protocol,
            "value": result["value"],
            "jackknife_se": result["jackknife_se"],
            "n": result["n"],
            "reasons": paper_table2.why_not_comparable(protocol, result),
        }
        for name, results in metrics.items()
        for protocol, result in results.items()
        if protocol.startswith("fid/")
    ]
    if ours:
        parts["fid"] = {"rows": paper_table2.ROWS, "note": paper_table2.NOTE, "ours": ours}
    categories = [
        {
            "samples": name,
            "category": category,
            "protocol": result["protocol"],
            "score": result["score"],
            "ci95": result["ci95"],
            "reasons": _why_not_table3(category, result),
        }
        for name, results in metrics.items()
        for category, result in results.get("compbench", {}).get("categories", {}).items()
    ]
    if categories:
        parts["compbench"] = {
            "columns": paper_table3.COLUMNS,
            "rows": [{"method": method, "scores": scores} for method, scores in paper_table3.ROWS.items()],
            "note": paper_table3.NOTE,
            "ours": categories,
        }
    return parts


def _why_not_table3(category: str, result: Mapping[str, Any]) -> list[str]:
    reasons = []
    if category not in paper_table3.COLUMNS:
        reasons.append("the paper has no such column")
    if not result["comparable"]:
        reasons.append(f"protocol {result['protocol']} is not the official one")
    if result["partial"]:
        reasons.append("not all prompts with ten images each")
    return reasons
