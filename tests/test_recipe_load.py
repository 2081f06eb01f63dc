"""Recipes: what a mistake says, how they are found, and what is written back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from recipe_files import GOOD, mistakes, recipe_writer

from pixart_core.errors import UserError
from pixart_core.recipe import find
from pixart_core.recipe.document import dump_yaml, parse_document
from pixart_core.recipe.find import find_recipe
from pixart_core.recipe.load import dump_recipe, load_recipe, select_step
from pixart_core.recipe.model_counts import parameters
from pixart_core.recipe.schema import ConvertStep, Recipe, ShapesStep
from pixart_core.recipe.training import ModelOptions, TrainStep


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    return recipe_writer(tmp_path, monkeypatch)


def test_every_mistake_is_reported_at_once_with_its_line(write) -> None:
    source = write(
        """\
        name: bad
        steps:
          a:
            command: train
            features: {step: q}
            model: {num_layer: 3}
            max_train_steps: 1.5
            global_batch_size: 8
            micro_batch_sise: 4
            optimizer: {kind: adamw, bets: 1}
            mixed_precision: bf17
            seed: -1
          b:
            command: extract-features
            data: 3
            aspect_buckets: sqare
          c: {command: trian}
          d: {comand: train}
          e:
            command: evaluate
            samples: {x: 3, y: {stp: a}}
            bench: [shapes, shaps]
          f: {command: extract-features, data: x, aspect_buckets: [[64, 64], [3]]}
          g: {command: encoders, data: x}
        """
    )
    assert mistakes(source) == [
        "r.yaml:5: a.features: step 'q' is not an earlier step (earlier steps: none)",
        "r.yaml:6: a.model.num_layer: unknown key, did you mean num_layers?",
        "r.yaml:7: a.max_train_steps: expected a whole number, got 1.5",
        "r.yaml:9: a.micro_batch_sise: unknown key, did you mean micro_batch_size?",
        "r.yaml:10: a.optimizer.bets: unknown key, did you mean betas?",
        'r.yaml:11: a.mixed_precision: expected one of no, bf16, got "bf17", did you mean bf16?',
        "r.yaml:12: a.seed: expected a value greater than or equal to 0, got -1",
        "r.yaml:15: b.data: expected a path, a hub id or {step: NAME}, got 3",
        'r.yaml:16: b.aspect_buckets: expected square, paper or a list, got "sqare", did you mean square?',
        "r.yaml:17: c.command: expected one of shapes, encoders, caption, extract-features, train, convert, "
        'sample, evaluate, got "trian", did you mean train?',
        "r.yaml:18: d.comand: unknown key, did you mean command?",
        "r.yaml:21: e.samples.x: expected a path, a hub id or {step: NAME}, got 3",
        "r.yaml:21: e.samples.y.stp: unknown key, did you mean step?",
        "r.yaml:22: e.bench[1]: expected one of shapes, frechet, fid, cmmd, fd-dinov2, clip, compbench, "
        'got "shaps", did you mean shapes?',
        "r.yaml:23: f.aspect_buckets[1][1]: missing",
        "r.yaml:24: g: give vae, text_encoder, or both",
    ]


def test_a_missing_key_is_named_at_its_step(write) -> None:
    text = GOOD.replace("    max_train_steps: 20\n", "")
    assert mistakes(write(text)) == ["r.yaml:17: second.max_train_steps: missing"]


def test_a_step_refers_to_earlier_steps_only(write) -> None:
    text = GOOD.replace("init: {step: first}", "init: {step: firts}")
    assert mistakes(write(text)) == [
        "r.yaml:20: second.init: step 'firts' is not an earlier step, did you mean first?"
    ]


def test_a_key_given_twice_is_a_mistake(write) -> None:
    text = GOOD.replace("    max_train_steps: 20\n", "    max_train_steps: 20\n    max_train_steps: 21\n")
    assert mistakes(write(text)) == ["r.yaml:22: second.max_train_steps: key given twice"]


@pytest.mark.parametrize("name", ["a/b", "..", ".chain"])
def test_step_names_are_folder_names(write, name: str) -> None:
    (line,) = mistakes(write(f"name: x\nsteps:\n  {name}: {{command: shapes}}\n"))
    assert line.startswith(f"r.yaml:3: {name}: only letters, digits and . _ - may be used")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [x", "r.yaml:1: not valid YAML"),
        ("name: x\n\tsteps: 1", "r.yaml:2: not valid YAML"),
        ("a: !!python/object:os.system x", "r.yaml:1: not valid YAML"),
        ("", "r.yaml: a recipe is a mapping"),
        ("- 1", "r.yaml: a recipe is a mapping"),
    ],
)
def test_text_that_is_no_recipe_gives_one_line(write, text: str, expected: str) -> None:
    (line,) = mistakes(write(text))
    assert line.startswith(expected)


def test_bytes_that_are_no_text_give_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00name")
    assert "not a text file in UTF-8" in mistakes(str(tmp_path / "r.yaml"))[0]


def test_scientific_numbers_and_bare_no_mean_what_they_say(write) -> None:
    recipe = load_recipe(write(GOOD))
    _, step = select_step(recipe, TrainStep, "first")
    assert step.learning_rate == 2e-5
    assert step.mixed_precision == "no"


def test_merge_keys_and_anchors_work(write) -> None:
    text = """\
    name: x
    steps:
      a: &a {command: shapes, count: 5}
      b:
        <<: *a
        count: 6
    """
    recipe = load_recipe(write(text))
    assert [step.count for step in recipe.steps.values() if isinstance(step, ShapesStep)] == [5, 6]


def test_a_dumped_recipe_loads_as_the_same_recipe(write) -> None:
    recipe = load_recipe(write(GOOD))
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")) == recipe


def test_dumped_yaml_means_the_same_to_every_reader() -> None:
    data = {"a": "no", "b": "1e-5", "c": 2e-5, "d": None, "e": "12:30", "f": [1, "x"], "g": "", "h": "~"}
    text = dump_yaml(data)
    assert yaml.safe_load(text) == data
    assert parse_document(text, "x").data == data


def test_select_step_asks_when_there_are_several(write) -> None:
    recipe = load_recipe(write(GOOD))
    with pytest.raises(UserError, match="has 2 train steps; choose one with --step: first, second"):
        select_step(recipe, TrainStep)
    with pytest.raises(UserError, match="no train step 'frst', did you mean first"):
        select_step(recipe, TrainStep, "frst")
    with pytest.raises(UserError, match="has 0 convert steps"):
        select_step(recipe, ConvertStep)


def test_bundled_recipes_are_found_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "pixart_core"
    bundled = package / "bundled_recipes"
    bundled.mkdir(parents=True)
    (bundled / "stage3_512.yaml").write_text(GOOD)
    monkeypatch.setattr(find.pixart_core, "__file__", str(package / "__init__.py"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    for name in ("stage3_512", "stage3_512.yaml", "recipes/stage3_512.yaml"):
        assert find_recipe(name) == bundled / "stage3_512.yaml"
    with pytest.raises(UserError, match="did you mean stage3_512"):
        find_recipe("stage3_521")
    with pytest.raises(UserError, match="bundled recipes: stage3_512"):
        find_recipe("other.yaml")
    (elsewhere / "stage3_512.yaml").write_text(GOOD)
    assert find_recipe("stage3_512.yaml") == Path("stage3_512.yaml")


def test_the_repository_s_own_recipes_all_load() -> None:
    for name in find.bundled_recipes():
        assert isinstance(load_recipe(name), Recipe)


def test_parameter_estimate_equals_the_published_counts() -> None:
    assert parameters(ModelOptions()) == 610_856_096
    assert parameters(ModelOptions(use_additional_conditions=True)) == 611_349_152
