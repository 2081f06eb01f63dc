"""Options of looking at a training are no part of what is trained."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pixart_core.artifacts.card import card_for, split_sources
from pixart_core.recipe.load import load_recipe
from pixart_core.recipe.plan import plan_chain, resolve_sources
from pixart_core.recipe.schema import step_references
from pixart_core.recipe.training import TrainStep, ValidationOptions
from pixart_core.recipe.watching import WATCHING

STEP = {
    "features": "features",
    "model": {},
    "max_train_steps": 10,
    "global_batch_size": 4,
    "micro_batch_size": 4,
}
WATCHED = {
    "validation": {"every": 5, "features": "heldout", "prompts": ["a fox"]},
    "report_to": ["csv", "tensorboard"],
    "tracker_project_name": "foxes",
    "page": False,
    "price": 2.5,
}


def test_watching_leaves_the_card_as_it_is() -> None:
    plain, watched = TrainStep(**STEP), TrainStep(**STEP, **WATCHED)
    assert WATCHED.keys() == WATCHING <= TrainStep.model_fields.keys()
    assert split_sources(plain) == split_sources(watched)
    assert card_for("checkpoint", plain, {}).fingerprint == card_for("checkpoint", watched, {}).fingerprint
    # What is left out of the record is still handed on to other processes, and to recipe.yaml.
    assert TrainStep.model_validate_json(watched.model_dump_json()) == watched


def test_features_to_validate_on_may_be_an_earlier_step(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        """
name: r
steps:
  heldout: {command: extract-features, data: x}
  train:
    command: train
    features: f
    model: {}
    max_train_steps: 10
    global_batch_size: 4
    micro_batch_size: 4
    validation: {features: {step: heldout}}
"""
    )
    loaded = load_recipe(str(recipe), [])
    step = loaded.steps["train"]
    assert step_references(step) == [("validation.features", "heldout")]
    resolved = resolve_sources(step, tmp_path)
    assert resolved.validation.features == str(tmp_path / "heldout")  # type: ignore[attr-defined]
    assert [planned.action for planned in plan_chain(loaded, tmp_path)] == ["run", "run"]


def test_one_name_is_a_list_of_one() -> None:
    step = TrainStep(**STEP, report_to="csv", validation={"prompts": "a fox"})  # type: ignore[arg-type]
    assert step.report_to == ("csv",)
    assert step.validation is not None
    assert step.validation.prompts == ("a fox",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "does nothing"),
        ({"prompts": ["a fox", " "]}, "a prompt is empty"),
        ({"bands": 1001}, "1000"),
    ],
)
def test_validation_that_makes_no_sense_is_told(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ValidationOptions(**options)
