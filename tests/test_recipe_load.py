"""Recipes: what a mistake says, what an override reaches, what is written back."""

import textwrap
from pathlib import Path

import pytest
import yaml

from pixart_core.errors import UserError
from pixart_core.recipe import find
from pixart_core.recipe.document import dump_yaml, parse_document, parse_value
from pixart_core.recipe.find import find_recipe
from pixart_core.recipe.load import dump_recipe, load_recipe, select_step, step_from_options
from pixart_core.recipe.model_counts import parameters
from pixart_core.recipe.schema import (
    ConvertStep,
    EvaluateStep,
    ExtractFeaturesStep,
    Recipe,
    SampleStep,
    ShapesStep,
)
from pixart_core.recipe.training import ModelOptions, MuonOptions, TrainStep

GOOD = """\
name: tiny
steps:
  data:
    command: shapes
  features:
    command: extract-features
    data: {step: data}
  first:
    command: train
    features: {step: features}
    model: {}
    max_train_steps: 10
    global_batch_size: 8
    micro_batch_size: 4
    learning_rate: 2e-5
    mixed_precision: no
  second:
    command: train
    features: {step: features}
    init: {step: first}
    max_train_steps: 20
    global_batch_size: 8
    micro_batch_size: 8
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "r.yaml") -> str:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return name

    return write


def mistakes(source: str, overrides: tuple[str, ...] = (), **options: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(source, overrides, **options)
    lines = str(caught.value).splitlines()
    if len(lines) == 1:
        return lines
    assert lines[0].startswith(f"{len(lines) - 1} mistakes")
    return [line.strip() for line in lines[1:]]


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


def test_parameter_estimate_equals_the_published_counts() -> None:
    assert parameters(ModelOptions()) == 610_856_096
    assert parameters(ModelOptions(use_additional_conditions=True)) == 611_349_152
