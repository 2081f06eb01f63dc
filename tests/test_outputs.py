"""Where results go: nothing finished or foreign is lost, nothing interrupted stands in the way."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import pixart

from pixart_cli.outputs import check_output, default_output
from pixart_core.artifacts.card import card_for
from pixart_core.errors import UserError
from pixart_core.recipe.estimate import estimate
from pixart_core.recipe.schema import ConvertStep, EvaluateStep, SampleStep
from pixart_core.recipe.training import ModelOptions, TrainStep


def train_step(**changes: Any) -> TrainStep:
    options = {"max_train_steps": 1, "global_batch_size": 1, "micro_batch_size": 1, "model": {}}
    return TrainStep(features="x", **(options | changes))


def convert_step(**changes: Any) -> ConvertStep:
    return ConvertStep(**({"source": "x", "to": "pixart"} | changes))


def finish(kind: str, step: Any, folder: Path) -> Path:
    card_for(kind, step, {}).write(folder)
    return folder


def test_train_and_convert_never_write_over_each_other(tmp_path: Path) -> None:
    run = finish("checkpoint", train_step(), tmp_path / "run")
    made = finish("checkpoint", convert_step(), tmp_path / "made")
    with pytest.raises(UserError, match="made by pixart train"):
        check_output("convert", run, convert_step())
    with pytest.raises(UserError, match="made by pixart convert"):
        check_output("train", made, train_step())
    check_output("train", run, train_step())
    check_output("convert", made, convert_step())


def test_a_result_of_other_options_is_not_replaced(tmp_path: Path) -> None:
    made = finish("checkpoint", convert_step(), tmp_path / "made")
    with pytest.raises(UserError, match="other options"):
        check_output("convert", made, convert_step(to="official"))
    report = EvaluateStep(samples={"a": "b"})
    made = finish("report", report, tmp_path / "report")
    check_output("evaluate", made, report)
    with pytest.raises(UserError, match=r"other options or inputs \(seed 0 there, 1 here\)"):
        check_output("evaluate", made, EvaluateStep(samples={"a": "b"}, seed=1))
    with pytest.raises(UserError, match=r"\(another samples\.a; another samples\.c\)"):
        check_output("evaluate", made, EvaluateStep(samples={"a": "x", "c": "d"}))


@pytest.mark.parametrize("name", ["model_index.json", "transformer", ".git"])
def test_a_conversion_takes_no_folder_with_anything_in_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    check_output("convert", folder, convert_step())
    (folder / name).touch()
    with pytest.raises(UserError, match="not empty"):
        check_output("convert", folder, convert_step())


def test_an_interrupted_default_output_is_continued_by_its_own_options_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine, other = (SampleStep(checkpoint="x", prompts=(prompt,)) for prompt in ("a fox", "a cat"))
    (tmp_path / "samples/x/images").mkdir(parents=True)
    assert default_output("sample", "x", other) == Path("samples/x")  # nothing says whose it is
    (tmp_path / "samples/x/sampling.json").write_text(card_for("samples", mine, {}).fingerprint + "\n")
    assert default_output("sample", "x", mine) == Path("samples/x")
    assert default_output("sample", "x", other) == Path("samples/x-2")

    begun = card_for("checkpoint", train_step(), {})
    (tmp_path / "runs/x/checkpoints").mkdir(parents=True)
    marker = {"options": dict(begun.options), "inputs": dict(begun.inputs)}
    (tmp_path / "runs/x/.run.json").write_text(json.dumps(marker))
    assert default_output("train", "x", train_step()) == Path("runs/x")
    assert default_output("train", "x", train_step(seed=1)) == Path("runs/x-2")


@pytest.mark.parametrize(
    "args",
    [
        ["convert", "--from", "x", "--to", "pixart", "--output", "/proc/foo"],
        ["sample", "--checkpoint", "x", "a fox", "--output", "/proc/foo/bar"],
        ["run", "recipe.yaml", "--output", "/proc/foo/bar"],
        ["run", "recipe.yaml", "--output", "/proc/foo/bar", "--dry-run"],
    ],
)
def test_what_cannot_be_read_or_written_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: tiny\nsteps:\n  data: {command: shapes}\n")
    assert pixart(*args) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("pixart: error: cannot ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"_class_name": "PixArtTransformer2DModel"}, True),
        ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}, True),
        ({"_class_name": "DiTTransformer2DModel"}, False),
        ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"}, False),
    ],
)
def test_parameters_of_a_checkpoint_are_those_of_its_class(
    tmp_path: Path, config: dict[str, Any], text: bool
) -> None:
    sizes = ModelOptions().model_dump(exclude={"conditioning", "learned_variance"})
    (tmp_path / "config.json").write_text(json.dumps(sizes | config))
    known = estimate(train_step(model=None, init=str(tmp_path)))
    # XL/2; a DiT's published 675,129,632 include its 256 x 1152 fixed positions.
    assert known["parameters"] == (610_856_096 if text else 675_129_632 - 256 * 1152)
