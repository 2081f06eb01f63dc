"""A chain that is killed goes on where it was."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from pixart_core.recipe.load import load_recipe
from pixart_core.recipe.plan import plan_chain

KILLED = """
import os, signal, sys
from pathlib import Path
from pixart_core.artifacts.card import card_for
from pixart_core.progress import Silent
from pixart_core.recipe.chain import run_chain
from pixart_core.recipe.load import load_recipe

def runner(step, output, progress):
    output.mkdir(exist_ok=True)
    with (output / "log").open("a") as log:
        log.write("begun\\n")
    if output.name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    card_for("fake", step, {}).write(output)
    return {"output": str(output)}

recipe = load_recipe(sys.argv[1])
run_chain(recipe, Path(sys.argv[2]), {s.command: runner for s in recipe.steps.values()}, Silent())
"""


def test_after_kill_9_the_chain_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        textwrap.dedent(
            """\
            name: x
            steps:
              a: {command: shapes, count: 1}
              b: {command: convert, source: {step: a}, to: pixart}
              c: {command: convert, source: {step: b}, to: diffusers}
            """
        )
    )
    root = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "r.yaml"), str(root)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([*command, "b"], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [s.action for s in plan_chain(load_recipe(tmp_path / "r.yaml"), root)] == [
        "done",
        "continue",
        "run",
    ]
    subprocess.run([*command, "nothing"], env=environment, check=True)
    counts = {name: (root / name / "log").read_text().count("begun") for name in "abc"}
    assert counts == {"a": 1, "b": 2, "c": 1}
    assert not (root / ".stale").exists()
