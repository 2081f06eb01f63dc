"""`pixart train --verify-resume`: trainings in processes of their own, killed and continued."""

import contextlib
import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from pixart_cli.console import RichProgress, show, stdout_to_stderr
from pixart_cli.launching import processes_for
from pixart_core.artifacts.publish import write_text
from pixart_core.errors import UserError
from pixart_core.recipe.load import dump_recipe
from pixart_core.recipe.schema import Recipe, TrainStep

PIXART = (sys.executable, "-c", "from pixart_cli.app import main; main()")
GRACE = 60.0  # seconds that several processes have to end each other
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def verify_resume(
    step: TrainStep, output: Path, *, steps: int, kills: int, as_json: bool, dry_run: bool
) -> None:
    """Prove on this machine that `step` continues exactly, and write the certificate into `output`.

    Exit code 1 if it does not.

    Raises:
        UserError: under a launcher, or too few steps for the kills.
        PixartError: the training fails by itself.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        raise UserError(
            "--verify-resume starts its own processes: run it without a launcher (`processes: N`)"
        )
    from pixart_core.training.verify import kill_places, shortened, verify_resume

    with stdout_to_stderr(), RichProgress() as progress:
        processes = processes_for(step, progress)
        if dry_run:
            short = shortened(step, steps, processes)
            places = kill_places(short, kills, processes)
            result: dict[str, Any] = {"output": str(output), "options": short.model_dump(mode="json")}
            result["kills"] = [dataclasses.asdict(place) for place in places]
        else:
            with _terminated_as_interrupted():
                result = verify_resume(
                    step, output, _Command(processes), progress, steps=steps, kills=kills, processes=processes
                )
    show(result, as_json=as_json, as_text=None if dry_run else _summary)
    if not dry_run and not result["identical"]:
        sys.exit(1)


class _Command:
    """Runs `pixart train`, as a person would."""

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def __call__(self, step: TrainStep, output: Path, environment: Mapping[str, str]) -> str | None:
        """See `training.verify.Sitting`."""
        recipe, said = output.with_suffix(".yaml"), output.with_suffix(".log")
        one = step.model_copy(update={"processes": self.processes})
        write_text(recipe, dump_recipe(Recipe(name="verify-resume", output=None, steps={"train": one})))
        with said.open("wb") as errors:
            child = subprocess.Popen(
                [*PIXART, "train", "--recipe", str(recipe), "--output", str(output)],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for this process alone
                preexec_fn=_end_with_parent(signal.SIGKILL if self.processes == 1 else signal.SIGTERM),
            )
            try:
                code = child.wait()
            finally:
                self._end(child)
        lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
        if code == 0:
            return None
        return lines[-1].removeprefix("pixart: error: ") if lines else f"exit code {code}"

    def _end(self, child: "subprocess.Popen[bytes]") -> None:
        if self.processes > 1 and child.poll() is None:  # it has its own to end
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
        child.kill()
        child.wait()


def _end_with_parent(number: int) -> Callable[[], None] | None:
    """What a child does first, so that it gets signal `number` when this process is killed (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return lambda: library.prctl(_PR_SET_PDEATHSIG, int(number))


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _summary(result: Mapping[str, Any]) -> str:
    """The verdict, what it rests on, and what differs."""
    kills = [
        f"  step {kill['step']} ({kill['point']}), then from step {kill['continued_at']}"
        for kill in result["kills"]
    ]
    lines = [
        result["verdict"],
        f"{result['steps']} steps in {result['processes']} process(es), killed {len(kills)} times at:",
        *kills,
        f"equal: {', '.join(result['compared']) or 'nothing'}",
    ]
    for about in ("differences", "differences_of_two_undisturbed_runs"):
        for part, found in result.get(about, {}).items():
            lines.append(f"{about.replace('_', ' ')}: {part} in {found['count']} places; {found['first'][0]}")
    return "\n".join([*lines, f"certificate: {result['certificate']}"])
