"""What may stand in one table: never two protocols, and never ours among the paper's unless it compares."""

import re
from typing import Any

import pytest

from pixart_core.evaluation.paper_table2 import why_not_comparable
from pixart_core.evaluation.report_markdown import escaped, table
from pixart_core.evaluation.report_sections import (
    clip_tables,
    compbench_tables,
    distance_tables,
    paper_tables,
)

FID = {
    "value": 9.5,
    "jackknife_se": 0.1,
    "n": 30_000,
    "n_reference": 40_504,
    "dimensions": 2048,
    "weights": "6726825d",
    "standard": True,
}
CATEGORY = {
    "protocol": "compbench/blip480-np8@1",
    "comparable": True,
    "partial": False,
    "score": 0.5,
    "ci95": [0.4, 0.6],
    "null": 0.1,
    "score_minus_null": 0.4,
    "score_minus_null_ci95": [0.3, 0.5],
    "ceiling": None,
    "n": 3000,
    "n_prompts": 300,
}


def metrics(**changes: Any) -> dict[str, dict[str, Any]]:
    return {
        "a": {"fid/coco256-cleanfid@1": FID, "fid/pytorch-fid@1": FID, "clip/b32-cos@1": {"standard": True}},
        "b": {"fid/coco256-cleanfid@1": FID | changes, "clip/other-cos@1": {"standard": False}},
    }


def test_a_table_holds_one_protocol() -> None:
    tables = distance_tables(metrics())
    assert [(t["protocol"], [row["samples"] for row in t["rows"]]) for t in tables] == [
        ("fid/coco256-cleanfid@1", ["a", "b"]),
        ("fid/pytorch-fid@1", ["a"]),
    ]
    assert [t["title"] for t in clip_tables(metrics())] == ["CLIP score", "CLIP score of another network"]
    categories = {
        name: {"compbench": {"categories": {"color": CATEGORY | {"protocol": protocol}}}}
        for name, protocol in (("a", "x@1"), ("b", "y@1"))
    }
    assert [(t["protocol"], len(t["rows"])) for t in compbench_tables(categories)] == [("x@1", 1), ("y@1", 1)]


def test_another_network_is_not_called_by_the_metrics_name() -> None:
    for protocol, title in [("cmmd/tiny@1", "CMMD formula on another"), ("frechet/x", "Fréchet.*not FID")]:
        (found,) = distance_tables({"a": {protocol: FID | {"standard": False}}})
        assert re.match(title, found["title"])


@pytest.mark.parametrize(
    ("protocol", "changes", "reason"),
    [
        ("fid/coco256-cleanfid@1", {}, None),
        ("fid/pytorch-fid@1", {}, "protocol fid/pytorch-fid@1"),
        ("fid/coco256-cleanfid@1", {"n": 5000}, "5,000 samples"),
        ("fid/coco256-cleanfid@1", {"n_reference": 30_000}, "30,000 reference images"),
        ("fid/coco256-cleanfid@1", {"n_reference": None}, "an unknown number of reference images"),
    ],
)
def test_fid_stands_beside_the_papers_only_if_all_is_the_same(
    protocol: str, changes: dict[str, Any], reason: str | None
) -> None:
    reasons = why_not_comparable(protocol, FID | changes)
    assert len(reasons) == (0 if reason is None else 1)
    assert reason is None or reasons[0].startswith(reason)


def test_papers_rows_are_as_printed_and_ours_carry_their_reasons() -> None:
    found = paper_tables(metrics(n=7))["fid"]
    assert {row[0]: row[3] for row in found["rows"]}["PixArt-α"] == 7.32
    assert [len(ours["reasons"]) for ours in found["ours"]] == [0, 1, 1]
    categories = {"color": CATEGORY, "numeracy": CATEGORY, "shape": CATEGORY | {"comparable": False}}
    table3 = paper_tables({"a": {"compbench": {"categories": categories}}})["compbench"]
    scores = {row["method"]: row["scores"] for row in table3["rows"]}
    assert scores["PixArt-α"] == (0.6690, 0.4927, 0.6477, 0.2064, 0.3197, 0.3433)
    assert len(scores) == 9
    assert {ours["category"]: len(ours["reasons"]) for ours in table3["ours"]} == {
        "color": 0,
        "numeracy": 1,
        "shape": 1,
    }


def test_nothing_measured_shows_no_paper() -> None:
    assert paper_tables({"a": {"frechet/pixels-8x8": FID, "shapes": {}}}) == {}


def test_markdown_shows_hostile_text_as_text() -> None:
    evil = "<script>alert(1)</script> | a `b` [c](d)\n# e"
    cell = escaped(evil)
    assert not re.search(r"[<>|`\n]", cell)
    assert table(["x"], [[cell]]).count("\n") == 2
