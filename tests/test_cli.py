"""The command line: what it prints where, and the exit codes that scripts rely on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import error_of, pixart
from faked_runners import Calls, fake_runners, write_recipe

from pixart_cli import app, runners
from pixart_cli.console import PLAIN_SECONDS, RichProgress
from pixart_core import __version__
from pixart_core.errors import PixartError, UserError

COMMANDS = ("caption", "extract-features", "train", "sample", "evaluate", "convert", "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_recipe(tmp_path, monkeypatch)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return fake_runners(monkeypatch)


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
