"""What was scored in part says so, wherever its numbers stand."""

import json
from pathlib import Path

from test_evaluate_runs import given, run, step
from test_report import Page

__all__ = ["given"]  # a fixture


def test_a_limit_marks_every_number_in_every_form_of_the_report(
    tmp_path: Path, given: dict[str, str]
) -> None:
    result, files = run(step(given, bench=("shapes", "clip", "frechet"), limit=20), tmp_path / "report")
    partial = {"scored": 20, "of": 24}
    for results in result["metrics"].values():
        assert [found["partial"] for found in results.values()] == [partial] * 3
    report = json.loads(files["report.json"])
    assert report["partial"] == {"new": partial, "old": partial}
    assert len(report["paired"]) == 3
    assert all(pair["partial"] for pair in report["paired"])
    page = " ".join(Page(files["report.html"].decode()).text.split())
    # Tiles, shapes, CLIP, distance and both sides of three differences, for both sets.
    assert page.count("partial: 20 of 24") == 2 * (1 + 1 + 1 + 1 + 3)
    lines = files["report.md"].decode().splitlines()
    rows = [line for line in lines if line.startswith(("| new", "| old", "| shapes", "| clip", "| frechet"))]
    assert len(rows) == 2 + 2 + 3
    assert all("(partial)" in line.split("|")[1] for line in rows)
    whole = run(step(given, bench=("shapes",), limit=24), tmp_path / "whole")[1]
    assert b"artial" not in whole["report.md"]
    assert "artial" not in Page(whole["report.html"].decode().split("</style>")[1]).text


def test_a_set_that_was_drawn_with_a_limit_is_marked_as_well(tmp_path: Path, given: dict[str, str]) -> None:
    asked = step(given, bench=("shapes",), whole={"new": 30_000, "old": 24})
    report = json.loads(run(asked, tmp_path / "report")[1]["report.json"])
    assert report["partial"] == {"new": {"scored": 24, "of": 30_000}}
    assert "partial" in report["metrics"]["new"]["shapes"]
    assert "partial" not in report["metrics"]["old"]["shapes"]
