"""Launches of sampling that are killed: processes forked from one that has imported everything already.

`python sampling_launches.py STEP_JSON FOLDER LAUNCHES_JSON` draws `FOLDER/whole` undisturbed, then runs each
of LAUNCHES: output below FOLDER, number of processes, and when all are killed with SIGKILL: when this number
of images is about to be written, or at the n-th call of some code (arguments of `kill_at_call`, n first), or
(null) never. It prints for each which batches were drawn and which images are there, by output.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from counted_kills import kill_at_call
from forked_ranks import fork_ranks
from PIL import Image

from pixart_core.progress import Silent
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling import sample

import accelerate  # noqa: F401  # isort: skip  # before the forks, as all the rest


Kill = int | list[Any] | None


def run(step: SampleStep, output: Path, logs: Path, kill: Kill) -> None:
    """What one process of a launch does, in a fork."""
    import torch

    torch.set_num_threads(1)  # the pool of threads did not come along
    draw, write = sample.draw, sample.write_image

    def logged_draw(model: Any, step: SampleStep, records: list[Any]) -> Any:
        _log(logs / "drawn", [record.file for record in records])
        return draw(model, step, records)

    def logged_write(folder: Path, record: Any, *rest: Any) -> None:
        _log(logs / "written", record.file)
        if isinstance(kill, int) and len(_read(logs / "written")) >= kill:
            os.killpg(0, signal.SIGKILL)
        write(folder, record, *rest)

    sample.draw, sample.write_image = logged_draw, logged_write  # type: ignore[assignment]
    if isinstance(kill, list):
        kill_at_call(*kill)
    sample.run_sampling(step, output, Silent())


def launch(step: SampleStep, output: Path, count: int, kill: Kill) -> dict[str, Any]:
    """One launch of `count` processes on `output`."""
    logs = output.with_name("logs")
    logs.mkdir(exist_ok=True)
    for name in ("drawn", "written"):
        (logs / name).write_text("")
    exit_codes = fork_ranks(count, lambda _: run(step, output, logs, kill))
    there = sorted((output / "images").glob("*.png"))
    for path in there:
        Image.open(path).load()  # none is cut off
    return {
        "exit_codes": exit_codes,
        "drawn": _read(logs / "drawn"),
        "there": [f"images/{path.name}" for path in there],
    }


def _log(path: Path, entry: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(step: SampleStep, folder: Path, launches: list[tuple[str, int, Kill]]) -> dict[str, Any]:
    """All launches, one after the other; their results by output."""
    import torch

    torch.set_num_threads(1)
    # In this process, so that all that is imported on the way is there in every fork.
    sample.run_sampling(step, folder / "whole", Silent())
    results: dict[str, list[dict[str, Any]]] = {}
    for name, count, kill in launches:
        results.setdefault(name, []).append(launch(step, folder / name, count, kill))
    return results


if __name__ == "__main__":
    given = SampleStep.model_validate_json(sys.argv[1])
    print(json.dumps(main(given, Path(sys.argv[2]), json.loads(sys.argv[3]))))
