"""Commands whose runners are faked, for tests of the command line alone, and a recipe for them to run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixart_cli import execute, runners
from pixart_core.artifacts.card import card_for
from pixart_core.progress import Progress

KINDS = {
    "caption": "captions",
    "extract-features": "features",
    "train": "checkpoint",
    "sample": "samples",
    "evaluate": "report",
    "convert": "pipeline",
}
RECIPE = """\
name: tiny
steps:
  data: {command: shapes}
  features: {command: extract-features, data: {step: data}}
  first: &first
    command: train
    features: {step: features}
    model: {}
    max_train_steps: 10
    global_batch_size: 8
    micro_batch_size: 4
  second:
    <<: *first
    seed: 1
"""
METRICS = {
    "new": {
        "shapes": {
            "exact": {"score": 0.5, "exact_minus_null": 0.4, "ci95": [0.25, 0.5]},
            "partial": {"scored": 4, "of": 9},
        },
        "fid/x@1": {"value": 12.3456, "jackknife_se": 0.5},
        "kid/x@1": {"value": -0.00012, "jackknife_se": 0.00003},
        "clip/x@1": {"score": 0.3, "score_minus_null": None},
        "compbench": {"categories": {"numeracy": {"score": 0.25, "score_minus_null": 0.1, "partial": True}}},
    }
}


def write_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test goes on in `tmp_path`, which holds nothing but recipe.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


class Calls(list[tuple[Any, Path]]):
    """What the runners were asked; `action` is what they do first."""

    action: Callable[[], None] = staticmethod(lambda: None)


def fake_runners(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """From now on every command only writes a card, and says something on the way."""
    calls = Calls()

    def fake(step: Any, output: Path, progress: Progress) -> dict[str, Any]:
        calls.append((step, output))
        progress.start("work", 2)
        progress.advance("work", 2)
        progress.finish("work")
        print("a library talks on stdout")
        calls.action()
        card_for(KINDS.get(step.command, "other"), step, {}).write(output)
        return {"output": str(output), "count": 3, "metrics": METRICS}

    fakes = dict.fromkeys(runners.FUNCTIONS, fake)
    monkeypatch.setattr(execute, "RUNNERS", fakes)
    monkeypatch.setattr(runners, "RUNNERS", fakes)
    monkeypatch.setattr("pixart_cli.commands.run.RUNNERS", fakes)
    return calls
