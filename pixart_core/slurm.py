"""SLURM: what `srun` tells its tasks, in the words of torchrun."""

import os
import re
from collections.abc import Mapping, MutableMapping

FIRST_PORT, PORTS = 15000, 15000  # below those that Linux hands out


def join_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell a task of `srun` its rank, and where the tasks meet, unless a launcher has.

    A job script itself, and a step of one task, are alone.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    for name, value in ranks_of(environment).items():
        environment.setdefault(name, value)


def ranks_of(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE and the rest, from the variables of a step of `srun`."""
    tasks = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    number = int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(tasks[int(environment["SLURM_NODEID"])]),
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(FIRST_PORT + number % PORTS),
    }


def tasks_per_node(text: str) -> list[int]:
    """`8(x2),4` is [8, 8, 4]."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]


def first_host(text: str) -> str:
    """`node[07-09,12],other` is node07."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", text)
    assert match is not None, text
    return match[1] + (match[2] or "") + (match[3] or "")
