"""Launches of captioning that are killed: processes forked from one that has imported everything already.

`python caption_launches.py STEP_JSON FOLDER KILLS LAUNCHES_JSON` makes `FOLDER/whole` undisturbed. Then it
launches `FOLDER/killed` until KILLS launches (0: none) were really killed, at random times; a launch that
finished before is compared with `whole`, and the next begins afresh. Two launches that nobody kills end it.
Then it runs each of LAUNCHES: output below FOLDER, number of processes, and when all are killed with
SIGKILL: after this share of an undisturbed run's time, once this whole number of batches is begun, or (null)
never. It prints what each described, as ids, and what was kept after it, by output.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from pixart_core.artifacts.caption_parts import PARTS
from pixart_core.artifacts.captions import rows_of
from pixart_core.encoders import caption, caption_local
from pixart_core.progress import Silent
from pixart_core.recipe.caption import CaptionStep

import accelerate  # noqa: F401  # isort: skip  # before the forks, as all the rest


def run(step: CaptionStep, output: Path, log: Path, rank: int, count: int, port: int) -> None:
    """What one process of a launch does, in a fork."""
    import torch

    torch.set_num_threads(1)  # the pool of threads did not come along
    if count > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
    begun = caption_local._Batch.rows

    def logged(batch: Any) -> Any:
        with log.open("a") as file:
            file.write(json.dumps(batch._ids) + "\n")
        return begun(batch)

    caption_local._Batch.rows = logged  # type: ignore[method-assign]
    caption.run_caption(step, output, Silent())


def launch(step: CaptionStep, output: Path, count: int, kill_after: float | int | None) -> dict[str, Any]:
    """One launch of `count` processes on `output`."""
    log = output.with_name("log")
    log.write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.monotonic()
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(step, output, log, rank, count, port)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    if kill_after is not None:
        begun = 0
        while begun < kill_after if isinstance(kill_after, int) else time.monotonic() < begin + kill_after:
            if all(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children):
                break
            time.sleep(0.002)
            begun = len(log.read_text().splitlines())
        for child in children:
            os.kill(child, signal.SIGKILL)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    parts = sorted((output / PARTS).glob("part-*.jsonl"))
    return {
        "begin": begin,
        "seconds": time.monotonic() - begin,
        "exit_codes": statuses,
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


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def killed(step: CaptionStep, folder: Path, kills: int, seconds: float) -> list[dict[str, Any]]:
    """Launches of one output until `kills` of them were killed, and two more to their end.

    Args:
        seconds: what an undisturbed run took; the next may be quicker, other work comes and goes.
    """
    output, draw = folder / "killed", random.Random(4)
    results: list[dict[str, Any]] = []
    while sum(result["exit_codes"] == [-signal.SIGKILL] for result in results) < kills:
        results.append(launch(step, output, 1, draw.uniform(0, 0.9) * seconds))
        if results[-1]["exit_codes"] == [0]:
            results[-1]["same"] = contents(output) == contents(folder / "whole")
            shutil.rmtree(output)
    return [*results, launch(step, output, 1, None), launch(step, output, 1, None)]


def main(
    step: CaptionStep, folder: Path, kills: int, launches: list[tuple[str, int, float | int | None]]
) -> dict[str, list[dict[str, Any]]]:
    """All launches, one after the other; their results by output."""
    import torch

    torch.set_num_threads(1)
    # In this process, so that all that is imported on the way is there in every fork.
    caption.run_caption(step, folder / "whole", Silent())
    seconds = launch(step, folder / "timing", 1, None)["seconds"]
    results = {"killed": killed(step, folder, kills, seconds)} if kills else {}
    for name, count, share in launches:
        kill_after = share * seconds if isinstance(share, float) else share
        results.setdefault(name, []).append(launch(step, folder / name, count, kill_after))
    return results


if __name__ == "__main__":
    given = CaptionStep.model_validate_json(sys.argv[1])
    print(json.dumps(main(given, Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))))
