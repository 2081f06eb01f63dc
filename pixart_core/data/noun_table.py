"""The result of `pixart caption --stats` as tables: one data set a row as in the paper, or a column."""

from collections.abc import Mapping
from typing import Any

from pixart_core.data.nouns import VALID_OCCURRENCES

_NONE = "-"
_VALID = f"Valid: > {VALID_OCCURRENCES} (VN)"
_TOKEN_CELLS = ("Tokens: mean", "  median", "  95 %", "  max")
_TOKENS = "Tokens: mean / median / 95 % / max"


def markdown_table(result: Mapping[str, Any]) -> list[str]:
    """Lines of a Markdown table in the shape of the paper's Table 1, ours first, then the paper's rows."""
    limit = result["max_tokens"]
    header = ("Data", "Captions", "VN/DN", "Total nouns", "Nouns/image", _TOKENS, f"> {limit} tokens")
    rows = [header, ("---", *["---:"] * (len(header) - 1))]
    for label, part, exact in _sets(result):
        cells = dict(_cells(part, limit, exact))
        ratio = f"{cells[_VALID]} / {cells['Distinct nouns (DN)']} = {cells['VN / DN']}"
        tokens = " / ".join(cells[name] for name in _TOKEN_CELLS) if part.get("tokens") else _NONE
        plain = [cells[name] for name in ("Total nouns", "Nouns per image")]
        rows.append((label, cells["Captions"], ratio, *plain, tokens, cells[f"Longer than {limit}"]))
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def statistics_columns(result: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(headings, rows of a label and one cell a heading): before, after, and the paper's.

    Rows that say nothing (tokens not counted, nothing left out) are left out.
    """
    sets = _sets(result)
    headings = ["captions"] if result["before"] is None else ["before", "after"]
    headings += [label.removesuffix(" (paper)") for label, _, _ in sets[len(headings) :]]
    columns = [_cells(part, result["max_tokens"], exact) for _, part, exact in sets]
    return headings, [
        (label, [column[number][1] for column in columns])
        for number, (label, _) in enumerate(columns[0])
        if any(column[number][1] not in (_NONE, "0") for column in columns)
    ]


def _sets(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """(label, statistics, whether they are exact) of each data set."""
    ours = [part for part in (result["before"], result["captions"]) if part is not None]
    labels = [part["label"] for part in ours]
    if len(set(labels)) < len(labels):
        labels = [f"{labels[0]}, before", f"{labels[0]}, after"]
    paper = [(f"{name} (paper)", row, False) for name, row in result["reported"].items()]
    return [(label, part, True) for label, part in zip(labels, ours, strict=True)] + paper


def _cells(part: Mapping[str, Any], max_tokens: int, exact: bool) -> list[tuple[str, str]]:
    tokens = part.get("tokens") or {}

    def count(name: str) -> str:
        return _number(part[name], exact) if name in part else _NONE

    def token(name: str, digits: int) -> str:
        return f"{tokens[name]:,.{digits}f}" if tokens else _NONE

    return [
        ("Captions", count("captions")),
        ("Total nouns", count("total_nouns")),
        ("Distinct nouns (DN)", count("distinct_nouns")),
        (_VALID, count("valid_distinct_nouns")),
        ("VN / DN", f"{part['valid_ratio']:.1%}"),
        ("Nouns per image", f"{part['nouns_per_image']:.1f}"),
        ("Tokens: mean", token("mean", 1)),
        ("  median", token("median", 0)),
        ("  95 %", token("p95", 0)),
        ("  max", token("max", 0)),
        (f"Longer than {max_tokens}", f"{tokens['truncated_share']:.2%}" if tokens else _NONE),
        ("Without caption", count("without_caption")),
        ("Left out", count("left_out")),
    ]


def _number(value: float, exact: bool) -> str:
    """The paper gives thousands and millions; ours are counted to the last one where there is room."""
    if value >= 1e7:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.0f}" if exact else f"{value / 1e3:.0f}K"
