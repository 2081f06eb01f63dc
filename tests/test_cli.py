"""The command line: what it prints where, and the exit codes that scripts rely on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixart_cli import app, execute, runners
from pixart_cli.console import PLAIN_SECONDS, RichProgress
from pixart_cli.outputs import name_of
from pixart_core import __version__
from pixart_core.artifacts.card import card_for
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Progress

COMMANDS = ("caption", "extract-features", "train", "sample", "evaluate", "convert", "run")
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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


METRICS = {
    "new": {
        "shapes": {
            "exact": {"score": 0.5, "exact_minus_null": 0.4},
            "partial": {"scored": 4, "of": 9},
        },
        "fid/x@1": {"value": 12.3456, "jackknife_se": 0.5},
        "kid/x@1": {"value": -0.00012, "jackknife_se": 0.00003},
        "clip/x@1": {"score": 0.3, "score_minus_null": None},
        "compbench": {"categories": {"numeracy": {"score": 0.25, "score_minus_null": 0.1, "partial": True}}},
    }
}


class Calls(list[tuple[Any, Path]]):
    """What the runners were asked; `action` is what they do first."""

    action: Callable[[], None] = staticmethod(lambda: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
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


def pixart(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        app.main(list(args))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def error_of(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """Run a command that fails; its one line on stderr."""
    assert pixart(*args) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("pixart: error: ")]
    return line.removeprefix("pixart: error: ")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_runnable_examples_and_imports_nothing_heavy(command: str) -> None:
    program = f"""
import sys
from pixart_cli.app import main
try:
    main({[part for part in (command, "--help") if part]!r})
except SystemExit as error:
    assert error.code == 0, error.code
heavy = {{"torch", "numpy", "transformers", "diffusers", "datasets", "PIL", "scipy", "matplotlib"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    examples = done.stdout.split("Examples:\n")[1].splitlines()
    # A launcher may stand before the command.
    plain = [line.strip().removeprefix("torchrun --nproc_per_node 8 --no-python ") for line in examples]
    assert all(line.startswith(f"pixart {command}".strip()) for line in plain if line)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert pixart("--version") == 0
    assert capsys.readouterr().out == f"pixart {__version__}\n"


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert pixart() == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing option '--recipe'"),
        (["train", "--recipe", "recipe.yaml", "--lr", "1"], "No such option: --lr"),
        (["caption", "--data", "x", "--limit", "many"], "--limit"),
        (["caption", "--data", "x", "--limit", "0"], "--limit: expected a value greater than 0, got 0"),
        (["caption", "--data", "x", "stray"], "override 'stray': write it as key=value"),
        (
            ["extract-features", "--data", "x", "storage=int9"],
            "override 'storage=int9': storage: expected one",
        ),
        (["train", "--recipe", "nowhere.yaml"], "no recipe 'nowhere.yaml'"),
        (["train", "--recipe", "recipe.yaml"], "choose one with --step: first, second"),
        (
            ["train", "--recipe", "recipe.yaml", "--step", "first"],
            "make it with: pixart run recipe.yaml --only features",
        ),
        (["sample", "--checkpoint", "runs/x"], "nothing to draw"),
        (["sample", "--checkpoint", "runs/x", "a fox", "any_size=true"], "given as --set any_size=true"),
        (
            ["sample", "--checkpoint", "runs/x", "--prompts", "none.txt"],
            "no file or manifest folder none.txt",
        ),
        (
            ["evaluate", "--samples", "a", "--bench", "shaps"],
            "--bench[0]: expected one of shapes, frechet, fid, ",
        ),
        (["evaluate", "--samples", "a", "--bench", "fid", "clpi"], 'got "clpi", did you mean clip?'),
        (["evaluate", "--samples", "a", "clip"], "clip"),
        (["evaluate", "--curve", "1,2", "--bench", "clip"], "give --checkpoint and --prompts"),
        (["evaluate", "--curve", "1,x", "--checkpoint", "c", "--prompts", "p"], "expected guidance scales"),
        (["evaluate", "--curve", "2,2", "--checkpoint", "c", "--prompts", "p"], "two different"),
        (["evaluate", "--samples", "a", "--checkpoint", "c"], "belong to --curve"),
        (["evaluate", "--samples", "x/a", "--samples", "y/a"], "two sets are called a"),
        (
            ["convert", "--from", "x", "--to", "pixrt"],
            "--to: expected one of pixart, dit, diffusers, official",
        ),
        (["run", "recipe.yaml", "--only", "frist"], "did you mean first?"),
        (["run", "recipe.yaml", "--from", "second"], "needs features"),
        (["run", "recipe.yaml", "second.sede=1"], "did you mean seed?"),
        (["run", "recipe.yaml", "--output", "recipe.yaml"], "recipe.yaml is a file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str], args: list[str], part: str
) -> None:
    assert part in error_of(capsys, *args)
    assert calls == []
    assert [path.name for path in here.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such checkpoint"), 2, "no such checkpoint"),
        (PixartError("the shard is damaged"), 1, "the shard is damaged"),
        (OSError(28, "No space left on device", "a.bin"), 1, "a.bin: No space left on device"),
    ],
)
def test_failures_are_one_line_and_exit_1(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    def fail() -> None:
        raise error

    calls.action = fail
    assert error_of(capsys, "sample", "--checkpoint", "x", "a fox", code=code) == line
    assert [path.name for path in here.iterdir()] == ["recipe.yaml"]


def test_ctrl_c_is_130_and_says_that_work_is_kept(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    calls.action = interrupt
    assert pixart("run", "recipe.yaml") == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "pixart: interrupted, work so far is kept"


def test_a_bug_keeps_its_traceback(here: Path, calls: Calls) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    calls.action = bug
    with pytest.raises(ZeroDivisionError):
        app.main(["sample", "--checkpoint", "x", "a fox"])


@pytest.mark.parametrize(
    "args",
    [
        ["caption", "--data", "x"],
        ["extract-features", "--data", "x"],
        ["sample", "--checkpoint", "runs/x", "a fox"],
        ["evaluate", "--samples", "samples/x"],
        ["convert", "--from", "x", "--to", "diffusers"],
        ["run", "recipe.yaml"],
    ],
)
def test_json_is_the_only_thing_on_stdout(here: Path, calls: Calls, args: list[str]) -> None:
    """In a process of its own: also what is written to file descriptor 1 goes to stderr."""
    program = f"""
import os
from pathlib import Path
from pixart_cli import app, execute, runners
from pixart_core.artifacts.card import card_for
def fake(step, output, progress):
    print("noise"); os.write(1, b"noise below Python"); os.system("echo noise of a process")
    card_for("x", step, {{}}).write(output)
    return {{"output": str(output), "folder": output}}
for command in runners.RUNNERS:
    runners.RUNNERS[command] = fake
app.main({args!r} + ["--json"])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=here
    )
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (here / result["output"]).is_dir()
    assert done.stderr.count("noise of a process") == (4 if args[0] == "run" else 1)


def test_run_prints_report_pipeline_and_metrics(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pixart("run", "recipe.yaml", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {"report", "pipeline", "metrics", "steps", "output"} == set(result)
    assert list(result["steps"]) == ["data", "features", "first", "second"]
    assert len(calls) == 4


def test_of_several_processes_only_the_first_speaks(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert pixart("sample", "--checkpoint", "x", "a fox", "--output", "s", "--json") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "work" not in captured.err
    assert len(calls) == 1


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


def test_samples_may_be_named(here: Path, calls: Calls) -> None:
    assert pixart("evaluate", "--samples", "new=b/1", "--samples", "a/old", "--bench", "shapes,frechet") == 0
    assert calls[0][0].samples == {"new": "b/1", "old": "a/old"}
    assert calls[0][0].bench == ("shapes", "frechet")


def test_several_benches_follow_one_flag(here: Path, calls: Calls) -> None:
    args = ["--bench", "fid", "clip", "inception=w.pth", "compbench", "shapes", "--samples", "a/x"]
    assert pixart("evaluate", *args, "--limit", "5", "--reference", "real") == 0
    assert calls[0][0].bench == ("fid", "clip", "compbench", "shapes")
    assert (calls[0][0].inception, calls[0][0].limit) == ("w.pth", 5)


def test_scores_are_lines_for_a_person_and_everything_with_json(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pixart("evaluate", "--samples", "a/x", "--output", "told") == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "new",
        "  shapes/exact        0.500, +0.400 against its null (of 4 of 9 samples)",
        "  fid/x@1             12.35 ± 0.5",
        "  kid/x@1             -0.00012 ± 3e-05",
        "  clip/x@1            0.300, without a null",
        "  compbench/numeracy  0.250, +0.100 against its null (partial)",
    ]
    assert pixart("evaluate", "--samples", "a/x", "--output", "told", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == METRICS


@pytest.fixture
def weights_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixart_core.evaluation.networks.check_networks", lambda _: None)


@pytest.mark.usefixtures("weights_are_here")
def test_a_curve_draws_each_scale_with_one_seed_and_scores_them_together(here: Path, calls: Calls) -> None:
    args = ["--curve", "3,1.5", "--checkpoint", "runs/x", "--prompts", "recipe.yaml", "--seed", "7"]
    assert pixart("evaluate", *args, "--bench", "clip", "fid", "--reference", "r", "inception=w") == 0
    *drawn, (scored, _) = [call[:2] for call in calls]
    assert [(step.guidance_scale, step.seed) for step, _ in drawn] == [(1.5, 7), (3, 7)]
    assert scored.samples == {f"guidance {step.guidance_scale:g}": str(output) for step, output in drawn}


def test_what_an_evaluation_lacks_is_told_before_its_samples_are_drawn(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "--curve",
        "3,1.5",
        "--checkpoint",
        "runs/x",
        "--prompts",
        "recipe.yaml",
        "--bench",
        "fid",
        "cmmd",
    ]
    assert pixart("evaluate", *args, "--reference", "r", "inception=w", "cmmd_model=/no/clip") == 2
    told = capsys.readouterr().err
    assert "3 things are missing" in told
    assert all(part in told for part in ("no such file or folder r", "no such file w", "/no/clip"))
    assert not calls


@pytest.mark.usefixtures("weights_are_here")
def test_a_curve_over_the_first_prompts_knows_of_how_many(here: Path, calls: Calls) -> None:
    (here / "prompts.jsonl").write_text(
        '{"prompt": "a", "ar": "3:4"}\n{"prompt": "b", "images_per_prompt": 3}\n{"prompt": "c"}\n'
    )
    args = ["--curve", "3,1.5", "--checkpoint", "runs/x", "--prompts", "prompts.jsonl", "--limit", "2"]
    assert pixart("evaluate", *args, "--bench", "clip") == 0
    *drawn, (scored, _) = [call[:2] for call in calls]
    assert [step.limit for step, _ in drawn] == [2, 2]
    assert scored.limit is None
    assert scored.whole == {"guidance 1.5": 5, "guidance 3": 5}


def test_every_step_of_a_recipe_has_a_runner() -> None:
    from pixart_core.recipe.annotations import child, tags
    from pixart_core.recipe.schema import Recipe

    assert set(runners.FUNCTIONS) == set(tags(child(child(Recipe, "steps"), "x")))
    for command, place in runners.FUNCTIONS.items():
        module, function = place.split(":")
        source = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py").read_text()
        assert f"def {function}(step: " in source, command


def test_progress_without_a_terminal_prints_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("pixart_cli.console.time.monotonic", lambda: clock[0])
    with RichProgress() as progress:
        progress.start("train", 100)
        for _ in range(100):
            clock[0] += PLAIN_SECONDS / 40
            progress.advance("train", note="loss 0.1")
        progress.finish("train")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 40/100 loss 0.1",
        "train: 80/100 loss 0.1",
        "train: 100/100 in 37.5 s loss 0.1",
    ]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("caption", "max_new_tokens=200"),
        ("caption", "filters.near_duplicates       Keep the first of images"),
        ("convert", "positions.sample_size"),
        ("train", "lr_scheduler=constant         constant, linear, cosine."),
        ("train", "model.size                    S, B, L, XL. Named size of DiT"),
        ("extract-features", "storage=int8                  int8, fp16, fp32."),
    ],
)
def test_help_lists_every_field_that_has_no_flag(
    capsys: pytest.CaptureFixture[str], command: str, line: str
) -> None:
    assert pixart(command, "--help") == 0
    fields = capsys.readouterr().out.split("Fields:\n")[1].split("Examples:\n")[0].splitlines()
    assert any(entry.strip().startswith(line) for entry in fields)
    names = {entry.split("=")[0].split()[0] for entry in fields if entry[:5].strip()}
    assert not names & {"command", "data", "limit"}
