"""Launches of captioning that are killed: processes forked from one that has imported everything already.

`python caption_launches.py STEP_JSON FOLDER LAUNCHES_JSON` makes `FOLDER/whole` undisturbed, then runs each
launch: output below FOLDER, number of processes, and when all are killed with SIGKILL: after this share of
an undisturbed run's time, once this whole number of batches is begun, or (null) never. It prints what each
described, as ids, and what was kept after it.
"""

import json
import os
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
        while isinstance(kill_after, int) and len(log.read_text().splitlines()) < kill_after:
            time.sleep(0.001)
        time.sleep(kill_after if isinstance(kill_after, float) else 0)
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


def main(
    step: CaptionStep, folder: Path, launches: list[tuple[str, int, float | int | None]]
) -> list[dict[str, Any]]:
    """All launches, one after the other."""
    import torch

    torch.set_num_threads(1)
    # In this process, so that all that is imported on the way is there in every fork.
    caption.run_caption(step, folder / "whole", Silent())
    whole = launch(step, folder / "timing", 1, None)["seconds"]
    results: list[dict[str, Any]] = []
    for name, count, share in launches:
        results.append(
            launch(step, folder / name, count, share * whole if isinstance(share, float) else share)
        )
    return results


if __name__ == "__main__":
    given = CaptionStep.model_validate_json(sys.argv[1])
    print(json.dumps(main(given, Path(sys.argv[2]), json.loads(sys.argv[3]))))
