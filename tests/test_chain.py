"""The chain: what runs, what is skipped, and that a kill or a changed option loses nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixart_core.artifacts.card import card_for
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Progress, Silent
from pixart_core.recipe import plan as plan_module
from pixart_core.recipe.chain import ChainResult, run_chain
from pixart_core.recipe.load import load_recipe
from pixart_core.recipe.plan import plan_chain
from pixart_core.recipe.records import locked
from pixart_core.recipe.schema import Recipe

TRAIN = {"command": "train", "max_train_steps": 10, "global_batch_size": 8, "micro_batch_size": 4}
STEPS: dict[str, Any] = {
    "data": {"command": "shapes", "count": 5},
    "features": {"command": "extract-features", "data": {"step": "data"}},
    "first": {**TRAIN, "features": {"step": "features"}, "model": {}},
    "pipeline": {"command": "convert", "source": {"step": "first"}, "to": "diffusers"},
    "samples": {"command": "sample", "checkpoint": {"step": "pipeline"}, "prompts": ["a"]},
    "scores": {"command": "evaluate", "samples": {"all": {"step": "samples"}}},
}


def recipe(**changes: dict[str, Any]) -> Recipe:
    steps = {name: options | changes.get(name, {}) for name, options in STEPS.items()}
    return Recipe.model_validate({"name": "tiny", "steps": steps})


class Fakes:
    """Runners that write a card and a `made` file, and remember what they were asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps: dict[str, Any] = {}
        self.fail_in: str | None = None
        self.found: list[str] = []

    def _run(self, step: Any, output: Path, progress: Progress) -> dict[str, Any]:
        self.calls.append(output.name)
        self.steps[output.name] = step
        self.found = sorted(entry.name for entry in output.iterdir()) if output.exists() else []
        output.mkdir(exist_ok=True)
        (output / "part").write_text("half")
        if output.name == self.fail_in:
            raise PixartError("the disk is full")
        if step.command == "evaluate":
            (output / "report.html").write_text("<html>")
        card_for("fake", step, {}).write(output)
        return {"output": str(output), "metrics": {"score": len(self.calls)}}

    @property
    def runners(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {step["command"]: self._run for step in STEPS.values()}


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


class Log(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def run(fakes: Fakes, root: Path, chain: Recipe | None = None, **options: Any) -> ChainResult:
    fakes.calls.clear()
    return run_chain(chain or recipe(), root, fakes.runners, options.pop("progress", Silent()), **options)


def test_steps_run_in_order_with_sources_resolved(fakes: Fakes, tmp_path: Path) -> None:
    root = tmp_path / "out"
    result = run(fakes, root)
    assert fakes.calls == list(STEPS)
    assert fakes.steps["first"].features == str(root / "features")
    assert fakes.steps["scores"].samples == {"all": str(root / "samples")}
    assert result.as_json() | {"steps": None} == {
        "output": str(root),
        "report": str(root / "scores" / "report.html"),
        "pipeline": str(root / "pipeline"),
        "metrics": {"score": 6},
        "steps": None,
    }
    assert [step["action"] for step in result.steps.values()] == ["ran"] * 6
    json.dumps(result.as_json())


def test_metrics_of_several_evaluations_are_told_together(fakes: Fakes, tmp_path: Path) -> None:
    step = {"command": "evaluate", "samples": {"all": {"step": "samples"}}}
    chain = Recipe.model_validate({"name": "tiny", "steps": STEPS | {"fid": step, "again": step}})
    told = {
        "scores": {"all": {"shapes": {"exact": 1}}},
        "fid": {"all": {"clip": {"score": 2}}, "other": {"clip": {"score": 3}}},
        "again": {"all": {"clip": {"score": 4}}},
    }

    def evaluate(step: Any, output: Path, progress: Progress) -> dict[str, Any]:
        return fakes.runners["evaluate"](step, output, progress) | {"metrics": told[output.name]}

    result = run_chain(chain, tmp_path, fakes.runners | {"evaluate": evaluate}, Silent())
    assert result.metrics == {
        "all": {"shapes": {"exact": 1}, "clip": {"score": 4}},
        "other": {"clip": {"score": 3}},
    }
    assert result.report == tmp_path / "again" / "report.html"


def test_a_second_run_does_nothing_and_tells_the_same(fakes: Fakes, tmp_path: Path) -> None:
    before = run(fakes, tmp_path / "out").as_json()
    after = run(fakes, tmp_path / "out").as_json()
    assert fakes.calls == []
    assert {step.pop("action") for step in after["steps"].values()} == {"done"}
    for step in before["steps"].values():
        del step["action"]
    assert after == before


def test_a_changed_option_reruns_that_step_and_what_depends_on_it(fakes: Fakes, tmp_path: Path) -> None:
    run(fakes, tmp_path / "out")
    log = Log()
    run(fakes, tmp_path / "out", recipe(first={"seed": 1}), progress=log)
    assert fakes.calls == ["first", "pipeline", "samples", "scores"]
    assert any("seed was 0, is 1" in line for line in log.lines)
    assert any("input source changed" in line for line in log.lines)


def test_output_of_other_options_is_moved_aside_never_deleted(fakes: Fakes, tmp_path: Path) -> None:
    root = tmp_path / "out"
    run(fakes, root)
    (root / "first" / "mine.txt").write_text("weeks of work")
    for seed in (1, 0, 1):
        run(fakes, root, recipe(first={"seed": seed}))
        assert fakes.found == []
    kept = sorted(path.name for path in (root / ".stale").glob("first-*"))
    assert len(kept) == 3
    assert [path.read_text() for path in (root / ".stale").rglob("mine.txt")] == ["weeks of work"]


def test_a_folder_nobody_recorded_is_moved_aside(fakes: Fakes, tmp_path: Path) -> None:
    root = tmp_path / "out"
    run(fakes, root, only=["data"])
    (root / "features").mkdir()
    (root / "features" / "x").write_text("x")
    run(fakes, root)
    assert (root / ".stale" / "features-unknown" / "x").read_text() == "x"


def test_another_version_of_pixart_makes_everything_stale(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fakes, tmp_path / "out")
    monkeypatch.setattr(plan_module, "__version__", "99")
    plan = plan_chain(recipe(), tmp_path / "out")
    assert [step.action for step in plan] == ["run"] * 6
    assert "this is 99" in plan[0].reason


def test_an_outer_input_that_changed_is_noticed(fakes: Fakes, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"1")
    chain = recipe(features={"data": str(pictures)})
    run(fakes, tmp_path / "out", chain)
    assert all(step.action == "done" for step in plan_chain(chain, tmp_path / "out"))
    (pictures / "b.png").write_bytes(b"2")
    plan = {step.name: step for step in plan_chain(chain, tmp_path / "out")}
    assert plan["data"].action == "done"
    assert plan["features"].reason == "stale: input data changed"


def test_lost_or_replaced_outputs_are_made_again(fakes: Fakes, tmp_path: Path) -> None:
    root = tmp_path / "out"
    run(fakes, root)
    (root / "features" / "card.json").unlink()
    run(fakes, root)
    assert fakes.calls == ["features"]
    card_for("fake", recipe().steps["data"], {}).write(root / "first")
    assert plan_chain(recipe(), root)[2].reason.endswith("was changed since")


def test_a_failed_step_names_itself_and_continues_in_place(fakes: Fakes, tmp_path: Path) -> None:
    root = tmp_path / "out"
    fakes.fail_in = "first"
    with pytest.raises(PixartError, match="step first: the disk is full"):
        run(fakes, root)
    assert plan_chain(recipe(), root)[2].action == "continue"
    fakes.fail_in = None
    run(fakes, root)
    assert fakes.calls == ["first", "pipeline", "samples", "scores"]
    assert not (root / ".stale").exists()


def test_an_unfinished_run_of_other_options_is_not_continued(fakes: Fakes, tmp_path: Path) -> None:
    root = tmp_path / "out"
    fakes.fail_in = "first"
    with pytest.raises(PixartError):
        run(fakes, root)
    fakes.fail_in = None
    run(fakes, root, recipe(first={"seed": 1}), only=["first"])
    assert fakes.found == []
    assert len(list((root / ".stale").glob("first-*"))) == 1


def test_a_runner_that_leaves_no_card_is_a_failure(fakes: Fakes, tmp_path: Path) -> None:
    runners = fakes.runners | {"shapes": lambda step, output, progress: {"output": str(output)}}
    with pytest.raises(PixartError, match=r"step data ended without writing .*card\.json"):
        run_chain(recipe(), tmp_path / "out", runners, Silent())


def test_only_runs_the_named_steps_and_needs_their_inputs(fakes: Fakes, tmp_path: Path) -> None:
    root = tmp_path / "out"
    with pytest.raises(UserError, match=r"step features needs data \(its data\), which is not done"):
        run(fakes, root, only=["features"])
    result = run(fakes, root, only=["features", "data"])
    assert fakes.calls == ["data", "features"]
    assert result.steps["first"]["action"] == "skip"
    assert (result.metrics, result.report, result.pipeline) == ({}, None, None)


def test_from_runs_the_rest_and_needs_what_is_before(fakes: Fakes, tmp_path: Path) -> None:
    root = tmp_path / "out"
    with pytest.raises(UserError, match="step first needs features"):
        run(fakes, root, start_from="first")
    run(fakes, root, only=["data", "features"])
    run(fakes, root, start_from="first")
    assert fakes.calls == ["first", "pipeline", "samples", "scores"]


def test_an_input_that_is_stale_is_not_good_enough(fakes: Fakes, tmp_path: Path) -> None:
    run(fakes, tmp_path / "out")
    with pytest.raises(UserError, match="stale: count was 5, is 6"):
        run(fakes, tmp_path / "out", recipe(data={"count": 6}), start_from="features")


def test_force_runs_the_chosen_steps_again(fakes: Fakes, tmp_path: Path) -> None:
    run(fakes, tmp_path / "out")
    run(fakes, tmp_path / "out", only=["samples"], force=True)
    assert fakes.calls == ["samples"]
    assert fakes.found == []
    run(fakes, tmp_path / "out")
    assert fakes.calls == []


def test_unknown_step_names_are_refused(fakes: Fakes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no step 'frist', did you mean first"):
        run(fakes, tmp_path / "out", only=["frist"])


def test_two_chains_cannot_share_a_folder(fakes: Fakes, tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(UserError, match=rf"process {os.getpid()}\) is working"):
        run(fakes, tmp_path / "out")
    run(fakes, tmp_path / "out")


def test_a_folder_of_something_else_is_refused(fakes: Fakes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(UserError, match="not empty"):
        run(fakes, tmp_path)
    card_for("features", recipe().steps["data"], {}).write(tmp_path)
    with pytest.raises(UserError, match="holds features"):
        run(fakes, tmp_path)


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    plan = plan_chain(recipe(), tmp_path / "out")
    assert [(step.action, step.reason) for step in plan] == [("run", "not made yet")] * 6
    assert list(tmp_path.iterdir()) == []


def test_the_resolved_recipe_is_saved_and_means_the_same_work(fakes: Fakes, tmp_path: Path) -> None:
    run(fakes, tmp_path / "out")
    again = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert again == recipe()
    run(fakes, tmp_path / "out", again)
    assert fakes.calls == []
