"""`pixart train` that starts its processes itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stores import write_tiny_store

from pixart_cli import launching
from pixart_cli.launching import processes_for
from pixart_core.artifacts.card import Card
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.slurm import first_host, join_slurm

RECIPE = """
name: tiny
steps:
  stage2:
    command: train
    features: features
    model: {num_layers: 2, num_attention_heads: 2, attention_head_dim: 8, sample_size: 8}
    max_train_steps: 9
    global_batch_size: 8
    micro_batch_size: 2
    lr_warmup_steps: 2
    checkpointing_steps: 3
    log_every: 1
    processes: 2
"""
PIXART = f"""
import sys
from pixart_cli import launching
launching.WORKER = [{str(Path(__file__).with_name("faulty_worker.py"))!r}]
from pixart_cli.app import main
main(sys.argv[1:])
"""
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "ACCELERATE_MIXED_PRECISION")


class Heard(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def make_step(**changes: Any) -> TrainStep:
    options = {"features": "x", "model": ModelOptions(), "max_train_steps": 1}
    return TrainStep(**(options | {"global_batch_size": 64, "micro_batch_size": 8} | changes))


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many GPUs there are."""
    for variable in LAUNCHED:
        monkeypatch.delenv(variable, raising=False)
    return lambda count: monkeypatch.setattr(launching, "visible_gpus", lambda: count)


@pytest.mark.parametrize(
    ("count", "changes", "expected"),
    [
        (0, {}, 1),
        (1, {}, 1),
        (8, {}, 8),
        (8, {"micro_batch_size": 32}, 8),
        (3, {"global_batch_size": 40}, 2),
        (8, {"processes": 4}, 4),
        (8, {"processes": 1}, 1),
        (0, {"processes": 3}, 3),
    ],
)
def test_as_many_processes_as_gpus_that_the_batch_divides_by(gpus, count, changes, expected) -> None:
    gpus(count)
    heard = Heard()
    assert processes_for(make_step(**changes), heard) == expected
    unused = "processes" not in changes and expected < count
    assert any("GPUs are used" in line for line in heard.lines) == unused


def test_a_launcher_has_decided_already(gpus, monkeypatch) -> None:
    gpus(8)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # accelerate launch, one process
    assert processes_for(make_step(), Silent()) == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes_for(make_step(), Silent()) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert processes_for(make_step(processes=2), Silent()) == 1
    with pytest.raises(UserError, match="processes: 3, but the launcher started 2"):
        processes_for(make_step(processes=3), Silent())


def test_what_cannot_be_started_is_refused(gpus, monkeypatch) -> None:
    gpus(2)
    with pytest.raises(UserError, match=r"shows 2 GPU"):
        processes_for(make_step(processes=4), Silent())


SLURM = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "20", "SLURM_PROCID": "17",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "8(x2),4",
    "SLURM_STEP_NODELIST": "gpu[07-08,12]",
}  # fmt: skip


def test_a_task_of_srun_knows_its_rank_and_the_first_machine() -> None:
    environment = dict(SLURM)
    join_slurm(environment)
    told = {name: value for name, value in environment.items() if name not in SLURM}
    assert told == {
        "RANK": "17", "WORLD_SIZE": "20", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": "18458",
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{"SLURM_STEP_NUM_TASKS": "1"}, {"RANK": "3"}])
def test_a_single_task_and_what_a_launcher_started_are_left_as_they_are(changes) -> None:
    environment = SLURM | changes
    before = dict(environment)
    join_slurm(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("a", "a"), ("a,b", "a"), ("n[1-3]", "n1"), ("n[03,07],m", "n03"), ("r1n[2-4]-ib,x", "r1n2-ib")],
)
def test_the_first_of_slurms_hosts(hosts, first) -> None:
    assert first_host(hosts) == first


def pixart(folder: Path, *args: str, fault: str = "none::0") -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    environment |= {"ACCELERATE_USE_CPU": "true", "FAULT": fault, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PIXART, *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def errors(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("pixart: ")]


def test_a_chain_trains_in_two_processes_is_killed_and_stopped_and_ends(tmp_path) -> None:
    write_tiny_store(tmp_path / "features", {(16, 16): 20, (8, 24): 14})
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    chain = ("run", "tiny.yaml", "--output", "run", "--json")

    killed = pixart(tmp_path, *chain, fault="1:SIGKILL:4")
    assert killed.returncode == 1
    assert killed.stdout == ""
    assert len(errors(killed)) == 1, killed.stderr
    assert "step stage2: rank 1 of 2 was ended by SIGKILL" in errors(killed)[0]
    assert "run the same command to continue" in errors(killed)[0]

    # A signal that only the parent gets: all stop after the same step, the state is saved.
    stopped = pixart(tmp_path, *chain, fault="0:parent-SIGTERM:5")
    assert stopped.returncode in (75, 130), stopped.stderr
    assert len(errors(stopped)) == 1, stopped.stderr
    assert "run the same command" in errors(stopped)[0]
    assert "at step 3" in stopped.stderr

    ended = pixart(tmp_path, *chain)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["steps"]["stage2"]["result"]["steps"] == 9
    assert sum("2 processes on this machine" in line for line in ended.stderr.splitlines()) == 1
    assert sum("continuing" in line for line in ended.stderr.splitlines()) == 1
    output = tmp_path / "run/stage2"
    rows = (output / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 10))
    assert "processes" not in Card.read(output, "checkpoint").options
