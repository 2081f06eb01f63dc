"""Launches of captioning that are killed: processes forked from one that has imported everything already.

`python caption_launches.py STEP_JSON FOLDER LAUNCHES_JSON` makes `FOLDER/whole` undisturbed, then runs each
of LAUNCHES: output below FOLDER, number of processes, and when all are killed with SIGKILL: once this number
of batches is begun, or at the n-th call of some code (arguments of `kill_at_call`, n first), or (null)
never. It prints what each described, as ids, and what was kept after it, by output.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from counted_kills import kill_at_call
from forked_ranks import fork_ranks

from pixart_core.artifacts.caption_parts import PARTS
from pixart_core.artifacts.captions import rows_of
from pixart_core.encoders import caption, caption_local
from pixart_core.progress import Silent
from pixart_core.recipe.caption import CaptionStep

import accelerate  # noqa: F401  # isort: skip  # before the forks, as all the rest


Kill = int | list[Any] | None


def run(step: CaptionStep, output: Path, log: Path, kill: Kill) -> None:
    """What one process of a launch does, in a fork."""
    import torch

    torch.set_num_threads(1)  # the pool of threads did not come along
    begun = caption_local._Batch.rows

    def logged(batch: Any) -> Any:
        with log.open("a") as file:
            file.write(json.dumps(batch._ids) + "\n")
        if isinstance(kill, int) and len(log.read_text().splitlines()) >= kill:
            os.killpg(0, signal.SIGKILL)
        return begun(batch)

    caption_local._Batch.rows = logged  # type: ignore[method-assign]
    if isinstance(kill, list):
        kill_at_call(*kill)
    caption.run_caption(step, output, Silent())


def launch(step: CaptionStep, output: Path, count: int, kill: Kill) -> dict[str, Any]:
    """One launch of `count` processes on `output`."""
    log = output.with_name("log")
    log.write_text("")
    begin = time.monotonic()
    exit_codes = fork_ranks(count, lambda _: run(step, output, log, kill))
    parts = sorted((output / PARTS).glob("part-*.jsonl"))
    return {
        "begin": begin,
        "exit_codes": exit_codes,
        "described": [json.loads(line) for line in log.read_text().splitlines()],
        "kept": [row.id for part in parts for row in committed(part)],
    }


def committed(part: Path) -> list[Any]:
    """The rows of whole batches."""
    whole = part.read_bytes()
    copy = part.with_name("copy")
    copy.write_bytes(whole[: whole.rfind(b"\n\n") + 2] if b"\n\n" in whole else b"")
    rows = [row for row, _ in rows_of(copy)]
    copy.unlink()
    return rows


def main(step: CaptionStep, folder: Path, launches: list[tuple[str, int, Kill]]) -> dict[str, Any]:
    """All launches, one after the other; their results by output."""
    import torch

    torch.set_num_threads(1)
    # In this process, so that all that is imported on the way is there in every fork.
    caption.run_caption(step, folder / "whole", Silent())
    results: dict[str, list[dict[str, Any]]] = {}
    for name, count, kill in launches:
        results.setdefault(name, []).append(launch(step, folder / name, count, kill))
    return results


if __name__ == "__main__":
    given = CaptionStep.model_validate_json(sys.argv[1])
    print(json.dumps(main(given, Path(sys.argv[2]), json.loads(sys.argv[3]))))
