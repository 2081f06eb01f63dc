"""What a command asks of its runner: flags, overrides, where the output goes; and the plan of a dry run."""

import json
from pathlib import Path

import pytest
import yaml
from command_line import error_of, pixart
from faked_runners import Calls, fake_runners, write_recipe

from pixart_cli.outputs import name_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_recipe(tmp_path, monkeypatch)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return fake_runners(monkeypatch)


def test_hyphens_and_underscores_are_the_same_option(here: Path, calls: Calls) -> None:
    (here / "made").mkdir()
    for spelling in ("--num-inference-steps", "--num_inference_steps"):
        assert (
            pixart("sample", "--checkpoint", "run_x", "a_b c-d", spelling, "7", "--set", "batch-size=2") == 0
        )
    (first, _), (second, _) = calls
    assert first == second
    assert (first.num_inference_steps, first.prompts, first.checkpoint, first.batch_size) == (
        7,
        ("a_b c-d",),
        "run_x",
        2,
    )
    assert pixart("extract_features", "--data", "x_y", "--text_encoder=a_b") == 0
    assert calls[-1][0].text_encoder == "a_b"


def test_prompts_may_hold_equals_signs(here: Path, calls: Calls) -> None:
    assert pixart("sample", "--checkpoint", "x", "e = mc^2", "a=b", "--output", "s") == 0
    assert calls[0][0].prompts == ("e = mc^2", "a=b")


def test_train_flags_are_overrides_of_the_chosen_step(here: Path, calls: Calls) -> None:
    assert pixart("run", "recipe.yaml", "--only", "data,features") == 0
    calls.clear()
    args = ["train", "--recipe", "recipe.yaml", "--step", "second", "--learning_rate", "1e-4", "seed=9"]
    assert pixart(*args, "--global-batch-size", "16") == 0
    ((step, output),) = calls
    assert (step.learning_rate, step.global_batch_size, step.seed) == (1e-4, 16, 9)
    assert step.features == "runs/tiny/features"
    assert output == Path("runs/tiny-second")


@pytest.mark.parametrize("form", ["--json", ""])
def test_dry_run_prints_the_resolved_plan_and_makes_nothing(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    for index in range(3):
        (here / f"{index}.png").write_bytes(b"")
    before = sorted(here.iterdir())
    flags = [form] if form else []
    assert pixart("extract-features", "--data", ".", "--limit", "2", "--dry-run", *flags) == 0
    plan = yaml.safe_load(capsys.readouterr().out)
    assert plan["options"]["limit"] == 2
    assert plan["options"]["storage"] == "int8"
    assert plan["estimate"]["images"] == 2
    # 512 px, 4 channels, mean and standard deviation, a scale of 2 bytes for 64 values; 120 tokens of 4096.
    values = 2 * 4 * 64**2 + 120 * 4096
    assert 0 <= plan["estimate"]["bytes_at_most"]["int8"] - 2 * values * 33 // 32 < 500
    assert 0 <= plan["estimate"]["bytes_at_most"]["fp32"] - 2 * values * 4 < 500
    assert pixart("run", "recipe.yaml", "--dry-run", "first.max_train_steps=3", *flags) == 0
    told = capsys.readouterr().out
    if form:
        steps = json.loads(told)["steps"]
        assert [step["action"] for step in steps] == ["run"] * 4
        assert steps[2]["options"]["features"] == "runs/tiny/features"
        assert steps[2]["estimate"]["images"] == 24
        assert steps[2]["estimate"]["parameters"] == 610_856_096
    else:
        assert told.count("run, not made yet") == 4
        assert "610,856,096 parameters" in told
    assert calls == []
    assert sorted(here.iterdir()) == before


def test_nothing_of_another_kind_is_overwritten(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pixart("caption", "--data", "x", "--output", "made") == 0
    assert pixart("run", "recipe.yaml") == 0
    (here / "photos").mkdir()
    (here / "photos" / "a.jpg").write_bytes(b"")
    calls.clear()
    capsys.readouterr()
    for folder, part in {
        "made": "made holds captions",
        "runs/tiny": "is the folder of a `pixart run`",
        "photos": "photos is not empty and not made by pixart sample",
        "recipe.yaml": "recipe.yaml is a file",
    }.items():
        assert part in error_of(capsys, "sample", "--checkpoint", "x", "a fox", "--output", folder)
    assert calls == []


def test_a_default_output_keeps_finished_results_of_other_options(here: Path, calls: Calls) -> None:
    for prompt in ("a fox", "a cat", "a fox"):
        assert pixart("sample", "--checkpoint", "runs/x", prompt) == 0
    assert [str(output) for _, output in calls] == ["samples/x", "samples/x-2", "samples/x"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("sam/", "sam"),
        ("../a b", "a-b"),
        ("hf:org/set/train", "train"),
        ("sam/{00..09}.tar", "00..09-.tar"),
        (".", "data"),
    ],
)
def test_default_names_come_from_the_source(source: str, name: str) -> None:
    assert name_of(source) == name
