"""Trainings in several processes, forked from one that has imported everything already.

`python training_ranks.py` reads jobs, one JSON object a line, and answers each with one:
{"step": options, "output": folder, "count": processes, "environ": {...}, "faults": {RANK: [KIND, STEP]}}
becomes {"codes": exit codes, "ranks": what each process said and how it ended}.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from forked_ranks import fork_ranks

from pixart_core.recipe.training import TrainStep


class Launcher:
    """The other end of such a process."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, step: TrainStep, output: Path, count: int, **more: Any) -> dict[str, Any]:
        """Do one job."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"step": step.model_dump(mode="json"), "output": str(output), "count": count} | more
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Jobs until stdin ends."""
    import torch
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor

    import pixart_core.sampling.validation
    import pixart_core.training.loop  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(launch(json.loads(line))), file=answers, flush=True)


def launch(job: dict[str, Any]) -> dict[str, Any]:
    """One job in processes of its own."""
    output = Path(job["output"])
    reports = [output.with_name(f"{output.name}.rank{rank}") for rank in range(job["count"])]
    for report in reports:
        report.unlink(missing_ok=True)
    codes = fork_ranks(job["count"], lambda rank: work(job, rank, reports[rank]))
    ranks = [json.loads(report.read_text()) if report.exists() else {} for report in reports]
    return {"codes": codes, "ranks": ranks}


def work(job: dict[str, Any], rank: int, report: Path) -> None:
    """What one process does, and what it tells of it."""
    from pixart_core.conversion.initial import open_painter
    from pixart_core.training import told_once
    from pixart_core.training.initial import read_folder
    from pixart_core.training.loop import run_training

    told_once.PATIENCE = 1.0  # those who are killed say nothing, however long one waits
    os.environ.update(job.get("environ", {}))
    progress = Faulty(*job.get("faults", {}).get(str(rank), ("none", -1)))
    ended: dict[str, Any] = {}
    try:
        step, output = TrainStep(**job["step"]), Path(job["output"])
        ended["result"] = run_training(step, output, progress, read_folder, open_painter)
    except BaseException as error:
        ended |= {"error": type(error).__name__, "message": str(error)}
    report.write_text(json.dumps(ended | {"said": progress.said}))
    if "error" in ended:
        os._exit(1)


class Faulty:
    """A listener that does harm after a step; with "not_finite" before it."""

    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step = kind, step
        if kind == "not_finite":
            poison(step)
        self.done = 0
        self.said: list[str] = []

    def start(self, task: str, total: int | None) -> None: ...

    def finish(self, task: str) -> None: ...

    def say(self, message: str) -> None:
        self.said.append(message)

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        self.done += units
        if self.done != self.step or not units or self.kind == "not_finite":
            return
        if self.kind == "raise":
            raise RuntimeError("pulled the plug")
        if self.kind == "full_disk":  # for every file of more than 20 kB
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            return
        os.kill(os.getpid(), getattr(signal, self.kind))


def poison(step: int) -> None:
    """Make this process's part of optimiser step `step` (from 1) not finite, its first sample."""
    from pixart_core.training import feed

    made = feed.make_batch

    def make_batch(*args: Any, **options: Any) -> Any:
        batch = made(*args, **options)
        if options["step"] == step - 1:
            batch.noise[0] = float("nan")
        return batch

    feed.make_batch = make_batch


if __name__ == "__main__":
    main()
