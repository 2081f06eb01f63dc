"""Proof on this machine that a training which is killed and continued ends as if nothing had happened.

A short version of the recipe runs once undisturbed, and once killed (SIGKILL) at several places and continued
each time, in processes of its own and a folder of its own. The certificate of it lies with the run.
"""

import contextlib
import dataclasses
import datetime
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pixart_core import __version__
from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.publish import write_json
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Progress
from pixart_core.recipe.plan import flat
from pixart_core.recipe.training import TrainStep
from pixart_core.training.certificate import CERTIFICATE, training_fingerprint
from pixart_core.training.differences import Part, compare_trainings
from pixart_core.training.log import read_rows
from pixart_core.training.run import STATES
from pixart_core.training.state import saved_states, step_of
from pixart_core.training.witness import Place, Point, Request

WORK = ".verify-resume"
EVERY = 2  # updates between two states
_POINTS: Sequence[Point] = ("updated", "saving", "saved", "micro_batch", "logged")
_FILES = 3  # of a state, between which a kill may fall

Sitting = Callable[[TrainStep, Path, Mapping[str, str]], str | None]
"""(recipe, output, environment) -> None when `pixart train` ended well there, else what it said last."""


def shortened(step: TrainStep, steps: int, processes: int) -> TrainStep:
    """`step` with `steps` updates, saved every other, of at most two micro-batches a process.

    All that decides how exact a continuation is stays: model, optimiser, schedule, features, precision.
    """
    return step.model_copy(
        update={
            "max_train_steps": steps,
            "lr_warmup_steps": min(step.lr_warmup_steps, steps // 2),
            "global_batch_size": min(step.global_batch_size, 2 * step.micro_batch_of(processes) * processes),
            "checkpointing_steps": EVERY,
            "checkpointing_minutes": None,
            "checkpoints_total_limit": 2,
            "max_train_time": None,
            "log_every": 3,  # a kill falls between two rows, too
            "validation": None,
            "report_to": (),
            "page": False,
        }
    )


def kill_places(short: TrainStep, kills: int, processes: int) -> list[Place]:
    """Where the training is killed: each in its own part of the run, one kind of place after the other.

    Raises:
        UserError: too few steps: a kill needs two, so that a state is saved among them.
    """
    steps = short.max_train_steps
    micro_batches = short.global_batch_size // (short.micro_batch_of(processes) * processes)
    if kills < 1 or steps < EVERY * kills:
        raise UserError(f"{kills} kills need at least {max(EVERY, EVERY * kills)} steps, not {steps}")
    places = []
    for number in range(kills):
        point, last = _POINTS[number % len(_POINTS)], (number + 1) * steps // kills
        if point in ("saving", "saved"):
            last -= last % EVERY
        nth = {"saving": number % _FILES + 1, "micro_batch": micro_batches}.get(point, 1)
        places.append(Place(point, last, nth))
    if kills >= len(_POINTS):
        places[-1] = Place("publishing", steps)
    return places


def verify_resume(
    step: TrainStep,
    output: Path,
    sitting: Sitting,
    progress: Progress,
    *,
    steps: int = 8,
    kills: int = 4,
    processes: int = 1,
) -> dict[str, Any]:
    """Run the proof and write `resume_certificate.json` into `output`; its content is returned.

    The run in `output`, if there is one, is not touched; what is made on the way is removed.

    Raises:
        UserError: another proof is running here, or too few steps.
        PixartError: the short training itself fails.
    """
    short = shortened(step, steps, processes)
    places = kill_places(short, kills, processes)
    work = output / WORK
    begin = time.monotonic()
    with only_launch(work, progress.say):
        try:
            proof = _Proof(short, work, sitting, progress)
            certificate = proof.run(places)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            with contextlib.suppress(OSError):  # whatever else is there stays
                output.rmdir()
    certificate = _about(step, short, processes) | certificate
    certificate["seconds"] = round(time.monotonic() - begin, 1)
    write_json(output / CERTIFICATE, certificate)
    return certificate | {"certificate": str(output / CERTIFICATE)}


class _Proof:
    def __init__(self, short: TrainStep, work: Path, sitting: Sitting, progress: Progress) -> None:
        self.short, self.work, self.sitting, self.progress = short, work, sitting, progress
        self.task = "verify resume"

    def run(self, places: Sequence[Place]) -> dict[str, Any]:
        for left in self.work.glob("*"):  # of a proof that was killed
            shutil.rmtree(left, ignore_errors=True)
        self.progress.start(self.task, len(places) + 2)
        self._sit("whole", None, "undisturbed")
        killed = [self._killed(place) for place in places]
        self._sit("killed", None, "continued to the end")
        parts = self._compare("whole", "killed")
        found: dict[str, Any] = {
            "identical": not any(part.differences for part in parts),
            "kills": killed,
            "compared": {part.name: part.hash for part in parts if not part.differences},
            "differences": _differing(parts),
        }
        if not found["identical"]:
            # Is it the continuation, or does this machine never compute the same thing twice?
            self._sit("again", None, "undisturbed, a second time")
            found["differences_of_two_undisturbed_runs"] = _differing(self._compare("whole", "again"))
        self.progress.finish(self.task)
        return found | {"verdict": _verdict(found)}

    def _killed(self, place: Place) -> dict[str, Any]:
        self._sit("killed", place, f"killed at step {place.step} ({place.point})")
        states = saved_states(self.work / "killed" / STATES)
        resumed = step_of(states[-1]) if states else 0
        return dataclasses.asdict(place) | {"signal": "SIGKILL", "continued_at": resumed}

    def _sit(self, name: str, kill: Place | None, about: str) -> None:
        told = self._told(name)
        told.mkdir(parents=True, exist_ok=True)
        before = _kills(told)
        said = self.sitting(self.short, self.work / name, Request(told, kill).environment())
        if said is not None and _kills(told) == before:
            raise PixartError(f"the short training failed by itself: {said}")
        if said is None and kill is not None:
            raise PixartError(f"the short training ended without being {about}")
        self.progress.advance(self.task, 1, about)

    def _compare(self, a: str, b: str) -> list[Part]:
        return compare_trainings(self.work / a, self.work / b, self._told(a), self._told(b))

    def _told(self, name: str) -> Path:
        return self.work / f"{name}.told"


def _kills(told: Path) -> int:
    return sum("killed" in row for file in told.glob("*.jsonl") for row in read_rows(file))


def _differing(parts: Sequence[Part]) -> dict[str, Any]:
    return {
        part.name: {"count": len(part.differences), "first": list(part.differences[:5])}
        for part in parts
        if part.differences
    }


def _verdict(found: Mapping[str, Any]) -> str:
    if found["identical"]:
        return "bit-identical: killed and continued, the training ends as the undisturbed one does"
    names = ", ".join(found["differences"])
    control = found["differences_of_two_undisturbed_runs"]
    if control:
        return f"not bit-identical ({names}), but neither are two undisturbed runs on this machine"
    return f"NOT bit-identical ({names}), although two undisturbed runs are: the continuation is not exact"


def _about(step: TrainStep, short: TrainStep, processes: int) -> dict[str, Any]:
    """What was verified, and where."""
    before, here = flat(step.model_dump(mode="json")), flat(short.model_dump(mode="json"))
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "schema_version": 1,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "recipe": {
            "fingerprint": training_fingerprint(step),
            "shortened": {
                key: [before.get(key), here.get(key)]
                for key in sorted(before.keys() | here.keys())
                if before.get(key) != here.get(key)
            },
        },
        "steps": short.max_train_steps,
        "processes": processes,
        "versions": {"pixart": __version__, "python": platform.python_version(), "torch": torch.__version__}
        | {name: version(name) for name in ("accelerate", "safetensors", "numpy")},
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
    }
