"""Overrides of a recipe and flags of a single command: what they reach, and what their mistakes say."""

from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_files import GOOD, mistakes, recipe_writer

from pixart_core.errors import UserError
from pixart_core.recipe.document import parse_value
from pixart_core.recipe.load import load_recipe, select_step, step_from_options
from pixart_core.recipe.schema import EvaluateStep, ExtractFeaturesStep, SampleStep, ShapesStep
from pixart_core.recipe.training import MuonOptions, TrainStep


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    return recipe_writer(tmp_path, monkeypatch)


def test_overrides_reach_steps_commands_nested_and_top_level_keys(write) -> None:
    overrides = [
        "first.learning_rate=1e-4",
        "second.max-train-steps=7",
        "second.optimizer.kind=muon",
        "second.optimizer.momentum=0.9",
        "first.optimizer.weight-decay=0",
        "shapes.sizes=[[96, 64]]",
        "second.init=runs/x",
        "extract-features.storage=fp16",
        "output=elsewhere",
    ]
    recipe = load_recipe(write(GOOD), overrides)
    first, second = (select_step(recipe, TrainStep, name)[1] for name in ("first", "second"))
    assert first.learning_rate == 1e-4
    assert first.optimizer.kind == "adamw"
    assert first.optimizer.weight_decay == 0
    assert second.max_train_steps == 7
    assert isinstance(second.optimizer, MuonOptions)
    assert second.optimizer.momentum == 0.9
    assert second.init == "runs/x"
    assert select_step(recipe, ShapesStep)[1].sizes == ((96, 64),)
    assert select_step(recipe, ExtractFeaturesStep)[1].storage == "fp16"
    assert recipe.output == "elsewhere"


def test_mistakes_in_overrides_name_the_override(write) -> None:
    overrides = (
        "train.seed=1",
        "secnd.seed=1",
        "second.seed=x",
        "second.micro_batch_sise=2",
        "second.optimiser.kind=muon",
        "second.weight_decay=0",
        "seed=3",
        "nonsense",
    )
    assert mistakes(write(GOOD), overrides) == [
        "override 'train.seed=1': several train steps, name one: first, second",
        "override 'secnd.seed=1': no step 'secnd', did you mean second?",
        "override 'second.optimiser.kind=muon': optimiser: unknown key, did you mean optimizer?",
        "override 'seed=3': name the step, as in data.seed=...",
        "override 'nonsense': write it as key=value",
        "override 'second.seed=x': second.seed: expected a whole number, got \"x\"",
        "override 'second.micro_batch_sise=2': second.micro_batch_sise: unknown key, "
        "did you mean micro_batch_size?",
        "override 'second.weight_decay=0': second.weight_decay: unknown key, did you mean "
        "second.optimizer.weight_decay?",
    ]


def test_focus_lets_an_override_name_a_field_alone(write) -> None:
    recipe = load_recipe(write(GOOD), ["seed=5", "optimizer.kind=muon"], focus="second")
    _, step = select_step(recipe, TrainStep, "second")
    assert (step.seed, step.optimizer.kind) == (5, "muon")
    assert select_step(recipe, TrainStep, "first")[1].seed == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("007", "007"),
        ("20_000", 20_000),
        ("no", "no"),
        ("true", True),
        ("", None),
        ("null", None),
        ("a fox: red #1", "a fox: red #1"),
        ("[a, 1]", ["a", 1]),
        ("{step: a}", {"step": "a"}),
        ('"1"', "1"),
    ],
)
def test_override_values_are_scalars_or_flow_yaml(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_flags_and_overrides_of_a_single_command_report_together() -> None:
    flags = {"checkpoint": "--checkpoint", "limit": "--limit"}
    with pytest.raises(UserError) as caught:
        step_from_options(SampleStep, {"limit": 0}, ["sede=3", "steps=2"], flags)
    message = str(caught.value)
    assert "--limit: expected a value greater than 0, got 0" in message
    assert "--checkpoint: missing" in message
    assert "override 'sede=3': sede: unknown key, did you mean seed?" in message
    assert "override 'steps=2'" in message


def test_a_single_command_has_no_steps_to_refer_to() -> None:
    with pytest.raises(UserError, match="only inside a recipe"):
        step_from_options(EvaluateStep, {"samples": {"x": "y"}}, ["reference={step: x}"], {})
