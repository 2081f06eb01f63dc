"""A command in several processes of one machine: how many, started, listened to, ended."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pixart_core.errors import PixartError, UnfinishedError, UserError
from pixart_core.launch import BEGAN, began, meeting_point, visible_gpus
from pixart_core.progress import Progress
from pixart_core.recipe.sample import SampleStep
from pixart_core.recipe.training import TrainStep

WORKER = ("-m", "pixart_cli.worker")
GRACE = 30.0  # seconds that the others have to end after one has failed
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ASKED = {75: UnfinishedError, 130: KeyboardInterrupt}


@dataclasses.dataclass(frozen=True)
class Launchable:
    """A command that several processes may share.

    Attributes:
        options: its step.
        interrupted: when Ctrl-C ends it at once; empty if always.
    """

    options: type[TrainStep] | type[SampleStep]
    interrupted: str = ""


COMMANDS = {
    "train": Launchable(TrainStep, "before the first step"),
    "sample": Launchable(SampleStep),
}


def processes_for(step: TrainStep | SampleStep, progress: Progress) -> int:
    """How many processes to start; 1: work in this one.

    torchrun, `accelerate launch` and SLURM's srun have decided already. Else it is `step.processes`, or as
    many GPUs as there are (fewer if a training's batch does not divide; one if sampling names a device).

    Raises:
        UserError: what was asked for does not go with the launch or with the GPUs.
    """
    if "WORLD_SIZE" in os.environ or "RANK" in os.environ:
        started = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
        if step.processes not in (None, started):
            raise UserError(
                f"processes: {step.processes}, but the launcher started {started} here: leave `processes` out"
            )
        return 1
    gpus = visible_gpus()
    if step.processes is not None:
        if gpus and step.processes > gpus:
            raise UserError(f"processes: {step.processes}, but this machine shows {gpus} GPU(s)")
        return step.processes
    if gpus <= 1 or "ACCELERATE_MIXED_PRECISION" in os.environ:  # set by `accelerate launch` of one process
        return 1
    if isinstance(step, SampleStep):
        return gpus if step.device in (None, "cuda") else 1
    fitting = next(n for n in range(gpus, 0, -1) if step.global_batch_size % n == 0)
    if fitting < gpus:
        progress.say(
            f"{fitting} of {gpus} GPUs are used: global_batch_size {step.global_batch_size} is not a "
            "multiple of more"
        )
    return fitting


def launch(
    command: str, step: TrainStep | SampleStep, output: Path, count: int, progress: Progress
) -> dict[str, Any]:
    """Run `step` in `count` processes that work together; only the first speaks.

    Returns:
        the first one's result.

    Raises:
        What the process that speaks raised; PixartError that names a process which ended without a word.
    """
    progress.say(f"{count} processes on this machine (`processes` sets how many)")
    with tempfile.TemporaryDirectory(prefix="pixart-") as name, meeting_point() as port:
        folder = Path(name)
        job = {"command": command, "step": step.model_dump(mode="json"), "output": str(output)}
        (folder / "job.json").write_text(json.dumps(job))
        children = [_start(folder, rank, count, port) for rank in range(count)]
        with _forwarding(children) as forwarded:
            codes, first = _wait(children)
        ends = [_read(folder / f"{rank}.json") for rank in range(count)]
    if not any(codes):
        return ends[0]["result"]
    raise _failure(COMMANDS[command], codes, first, ends, forwarded)


def _start(folder: Path, rank: int, count: int, port: int) -> "subprocess.Popen[bytes]":
    environment = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", BEGAN: str(began()),
    }  # fmt: skip
    if not visible_gpus():
        environment["ACCELERATE_USE_CPU"] = "true"
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return subprocess.Popen(
        [sys.executable, *WORKER, str(folder), str(os.getpid())],
        env={"OMP_NUM_THREADS": threads} | os.environ | environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches them once, through this process
    )


@contextlib.contextmanager
def _forwarding(children: "Sequence[subprocess.Popen[bytes]]") -> Iterator[list[int]]:
    """Send the signals that ask for an end on to `children`, the third of them as SIGKILL.

    Yields those that came.
    """
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for child in children:
            child.send_signal(number if len(came) < 3 else signal.SIGKILL)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: "Sequence[subprocess.Popen[bytes]]") -> tuple[list[int], int]:
    """Wait until all have ended; after a failure they have `GRACE`.

    Returns:
        exit codes (minus the signal's number), and which failed first.
    """
    first, deadline = 0, float("inf")
    while any(child.poll() is None for child in children):
        failed = [rank for rank, child in enumerate(children) if child.returncode not in (None, 0, *ASKED)]
        if failed and deadline == float("inf"):
            # Seen at once: one that was killed explains one that lost it.
            first = min(failed, key=lambda rank: children[rank].returncode)
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    if deadline == float("inf"):
        first = min(range(len(codes)), key=codes.__getitem__)
    return codes, first


def _read(path: Path) -> dict[str, Any]:
    """What a process left; nothing if it was killed."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _failure(
    command: Launchable, codes: list[int], first: int, ends: list[dict[str, Any]], forwarded: list[int]
) -> BaseException:
    """What to raise for a launch that failed with `first`."""
    told = next((end for end in ends if "message" in end), None)
    if told is None and -codes[first] in forwarded:
        return KeyboardInterrupt(command.interrupted)
    if codes[first] < 0:  # says more than what the others saw of it
        name = signal.Signals(-codes[first]).name
        guess = " (out of memory?)" if name == "SIGKILL" else ""
        return PixartError(
            f"rank {first} of {len(codes)} was ended by {name}{guess}, so all ended; work so far is kept: "
            "run the same command to continue"
        )
    if told is None:
        failed = next(rank for rank, code in enumerate(codes) if code)
        return PixartError(f"rank {failed} of {len(codes)} failed (exit code {codes[failed]}), see above")
    kinds: dict[str, type[BaseException]] = {
        "mistake": UserError,
        "unfinished": UnfinishedError,
        "interrupt": KeyboardInterrupt,
    }
    return kinds.get(told["kind"], PixartError)(told["message"])
