"""`report.md`: the figures of the report as Markdown tables, one protocol a table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pixart_core.evaluation.report_sections import clip_tables, compbench_tables, distance_tables

_SPECIAL = "\\`*_{}[]<>()#+-.!|~&"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as text; prompts and names come from anywhere, so everything special is escaped."""
    parts = ["# PixArt-α evaluation report", escaped(report["verdict"])]
    for name, partial in report["partial"].items():
        parts.append(
            f"**Partial:** of {escaped(name)}, {partial['scored']} of {partial['of']} samples were scored."
        )
    parts += _shapes(report) + _clip(report) + _compbench(report) + _distances(report)
    parts += _paired(report) + _curves(report) + _paper(report)
    versions = ", ".join(f"{escaped(name)} {escaped(v)}" for name, v in report["versions"].items())
    parts.append(f"pixart {escaped(report['pixart_version'])}; {versions}")
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """`text` on one line, with nothing that Markdown or HTML would read."""
    line = " ".join(text.split())
    return "".join(f"&#{ord(c)};" if c in "<>&|`" else f"\\{c}" if c in _SPECIAL else c for c in line)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells must be escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int) -> str:
    """A figure, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(bounds: Sequence[float] | None, digits: int) -> str:
    """`low to high`, or a dash."""
    return "–" if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def _partial(result: Mapping[str, Any]) -> str:
    return " (partial)" if result.get("partial") else ""


def _shapes(report: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, results in report["metrics"].items():
        scores = {metric: s for metric, s in results.get("shapes", {}).items() if metric != "partial"}
        if scores:
            rows = [
                [
                    metric,
                    *(number(s[key], 4) for key in ("score", "null", "exact_minus_null")),
                    interval(s["ci95"], 4),
                    str(s["n"]),
                ]
                for metric, s in scores.items()
            ]
            head = ["metric", "score", "null", "score − null", "95 % interval", "n"]
            mark = _partial(results["shapes"])
            parts += [f"## Shapes: {escaped(name)}{mark}", table(head, rows)]
    return parts


def _clip(report: Mapping[str, Any]) -> list[str]:
    parts = []
    head = ["samples", "score", "95 % interval", "null", "score − null", "95 % interval", "n", "prompts"]
    for group in clip_tables(report["metrics"]):
        rows = [[*_alignment(row), str(row["n"]), str(row["prompts"])] for row in group["rows"]]
        parts += [f"## {group['title']} ({escaped(group['protocol'])})", table(head, rows)]
    return parts


def _compbench(report: Mapping[str, Any]) -> list[str]:
    parts = []
    head = ["samples", "score", "95 % interval", "null", "score − null", "95 % interval", "ceiling", "images"]
    for group in compbench_tables(report["metrics"]):
        rows = [[*_alignment(row), number(row["ceiling"], 4), str(row["n"])] for row in group["rows"]]
        mark = "" if group["comparable"] else " † not comparable with published numbers"
        title = f"## T2I-CompBench {escaped(group['category'])} ({escaped(group['protocol'])}){mark}"
        parts += [title, table(head, rows)]
    for name, missing in report["missing"].items():
        for entry in missing:
            categories = ", ".join(entry["categories"])
            text = f"{entry['part']} ({entry['size']}) for {categories}: {entry['fix']}"
            parts.append(f"Not scored in {escaped(name)}: {escaped(text)}")
    return parts


def _alignment(row: Mapping[str, Any]) -> list[str]:
    return [
        escaped(row["samples"]) + _partial(row),
        number(row["score"], 4),
        interval(row["ci95"], 4),
        number(row["null"], 4),
        number(row["score_minus_null"], 4),
        interval(row["score_minus_null_ci95"], 4),
    ]


def _distances(report: Mapping[str, Any]) -> list[str]:
    parts = []
    head = ["samples", "value", "jackknife SE", "95 % interval", "bias-corrected", "n → ∞", "real images"]
    for group in distance_tables(report["metrics"]):
        digits = group["digits"]
        rows = [
            [
                escaped(row["samples"]) + _partial(row),
                number(row["value"], digits),
                number(row["jackknife_se"], digits),
                interval(row["ci95"], digits),
                *(number(row.get(key), digits) for key in ("bias_corrected", "extrapolated", "real_images")),
                str(row["n"]),
                number(row["n_reference"], 0),
            ]
            for row in group["rows"]
        ]
        title = f"## {escaped(group['title'])} ({escaped(group['protocol'])})"
        parts += [title, table([*head, "n", "reference"], rows)]
    return parts


def _paired(report: Mapping[str, Any]) -> list[str]:
    if not report["paired"]:
        return []
    rows = [
        [
            escaped(row["protocol"]) + _partial(row),
            *(escaped(row[key]) for key in ("a", "b")),
            number(row["difference"], 4),
            interval(row["ci95"], 4),
            str(row["n"]),
            "yes" if row["distinguishable"] else "not distinguishable",
        ]
        for row in report["paired"]
    ]
    return [
        "## Differences between sample sets",
        table(["score", "a", "b", "a − b", "95 % interval", "pairs", "different?"], rows),
    ]


def _curves(report: Mapping[str, Any]) -> list[str]:
    parts = []
    for curve in report["curves"]:
        rows = [
            [
                f"{point['guidance_scale']:g}",
                number(point["x"], 4),
                interval(point["x_ci95"], 4),
                number(point["y"], 4),
                interval(point["y_ci95"], 4),
            ]
            for point in curve["points"]
        ]
        head = ["guidance", "CLIP score", "95 % interval", "distance", "95 % interval"]
        title = f"## Guidance: {escaped(curve['y'])} over {escaped(curve['x'])}{_partial(curve)}"
        parts += [title, table(head, rows)]
    return parts


def _paper(report: Mapping[str, Any]) -> list[str]:
    parts = []
    for part, title in (("fid", "Table 2, COCO FID-30K"), ("compbench", "Table 3, T2I-CompBench")):
        if part not in report["paper"]:
            continue
        data = report["paper"][part]
        if part == "fid":
            head = ["method", "parameters", "images", "FID-30K", "GPU days"]
            rows = [[escaped(a), b, c, f"{d:.2f}", e] for a, b, c, d, e in data["rows"]]
        else:
            head = ["method", *data["columns"]]
            rows = [[escaped(r["method"]), *(f"{s:.4f}" for s in r["scores"])] for r in data["rows"]]
        parts += [f"## The paper's {title}, as reported", escaped(data["note"]), table(head, rows)]
        for ours in data["ours"]:
            what = f"{ours['samples']}: {ours.get('category', '')} {ours.get('value', ours.get('score'))}"
            verdict = "not comparable: " + "; ".join(ours["reasons"]) if ours["reasons"] else "same protocol"
            parts.append(f"- {escaped(what)} — {escaped(verdict)}")
    return parts
