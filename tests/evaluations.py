"""Evaluations that are killed, or shared by two processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pixart_core.evaluation import evaluate as front
from pixart_core.evaluation.evaluate import run_evaluation
from pixart_core.launch import Processes
from pixart_core.progress import Silent
from pixart_core.recipe.evaluate import EvaluateStep

# The frame is cut off in its middle, as a kill within a write leaves it.
KILLED = """
import os, pathlib, signal, sys
from pixart_core.evaluation import feature_cache
from pixart_core.evaluation.compbench import answer_cache
from pixart_core.evaluation.evaluate import run_evaluation
from pixart_core.progress import Silent
from pixart_core.recipe.evaluate import EvaluateStep
calls, count = [], int(sys.argv[3])

def cut(kind, name):
    whole = getattr(kind, name)
    def append(self, *args):
        calls.append(1)
        whole(self, *args)
        if len(calls) == count:
            os.truncate(self._own, self._own.stat().st_size - 10)
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(kind, name, append)

cut(feature_cache.FeatureCache, "append")
cut(answer_cache.AnswerCache, "append")
run_evaluation(EvaluateStep.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]), Silent())
"""


def evaluate_and_kill(step: EvaluateStep, output: Path, batch: int) -> None:
    """A process evaluates until half of what a model found in its `batch`-th batch is written, and is killed.

    Batches of all models are counted together.
    """
    arguments = [sys.executable, "-c", KILLED, step.model_dump_json(), str(output), str(batch)]
    child = subprocess.run(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert child.returncode == -signal.SIGKILL
    assert not (output / "report.json").exists()


def evaluate_as_the_second(step: EvaluateStep, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the work of the second of two processes; from then on, this one is the first of them."""
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    # The scan of the reference is the first process's work, for which the second waits.
    scan = step.model_copy(update={"bench": ("frechet",)})
    run_evaluation(scan, output.with_name("scan"), Silent())
    monkeypatch.setattr(front, "connect", lambda: Processes(rank=1, count=2))
    assert run_evaluation(step, output, Silent()) == {"output": str(output)}
    assert not (output / "report.json").exists()
    monkeypatch.setattr(front, "connect", lambda: Processes(rank=0, count=2))
