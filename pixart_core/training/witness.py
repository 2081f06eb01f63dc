"""What `pixart train --verify-resume` asks of the trainings that it starts: die at a place, tell of batches.

It asks through the environment, which reaches every process of a launch. A training that nobody asks passes
its places without doing anything.
"""

import dataclasses
import functools
import json
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Self, get_args

import xxhash
from torch import Tensor

from pixart_core.artifacts.tensor_file import raw_bytes
from pixart_core.training.batches import TrainingBatch

VARIABLE = "PIXART_VERIFY"

Point = Literal["micro_batch", "updated", "logged", "saving", "saved", "publishing"]
"""Before a micro-batch, after the update, after its row in the log, between two files of a state, after the
state has its name, between the weights and the card of the finished checkpoint."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The `nth` time that optimiser step `step` (from 1) passes `point`."""

    point: Point
    step: int
    nth: int = 1


@dataclasses.dataclass(frozen=True)
class Request:
    """What a training is asked for.

    Attributes:
        folder: gets what the processes tell.
        kill: where every process that comes there kills itself (SIGKILL).
    """

    folder: Path
    kill: Place | None = None

    def environment(self) -> Mapping[str, str]:
        """The variable that asks for it."""
        kill = None if self.kill is None else dataclasses.asdict(self.kill)
        return {VARIABLE: json.dumps({"folder": str(self.folder), "kill": kill})}

    @classmethod
    def read(cls) -> Self | None:
        """What this process is asked for."""
        if not (text := os.environ.get(VARIABLE)):
            return None
        asked = json.loads(text)
        return cls(Path(asked["folder"]), Place(**asked["kill"]) if asked["kill"] else None)


def passing(point: Point, step: int) -> None:
    """Say that optimiser step `step` passes `point`."""
    if (witness := _witness()) is not None:
        witness.passing(point, step)


def witnessed(batches: Iterable[TrainingBatch], step: int) -> Iterator[TrainingBatch]:
    """The micro-batches of optimiser step `step`, told of as they are used."""
    witness = _witness()
    for number, batch in enumerate(batches, start=1):
        if witness is not None:
            witness.passing("micro_batch", step)
            witness.tell({"step": step, "micro_batch": number, "hash": _hash_batch(batch)})
        yield batch


class _Witness:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.passed: dict[tuple[str, int], int] = {}
        self.file = request.folder / f"rank_{os.environ.get('RANK', '0')}.jsonl"

    def passing(self, point: Point, step: int) -> None:
        count = self.passed[point, step] = self.passed.get((point, step), 0) + 1
        if self.request.kill == Place(point, step, count):
            self.tell({"killed": dataclasses.asdict(self.request.kill)})
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(self, row: Mapping[str, object]) -> None:
        # Opened each time: nothing may wait in a buffer when the process is killed.
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


@functools.cache
def _witness() -> _Witness | None:
    request = Request.read()
    if request is None:
        return None
    assert request.kill is None or request.kill.point in get_args(Point)
    return _Witness(request)


def _hash_batch(batch: TrainingBatch) -> str:
    """Of everything in a micro-batch: images, their order, noise, timesteps, captions and drops."""
    hasher = xxhash.xxh3_128()
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        hasher.update(field.name.encode())
        if isinstance(value, Tensor):
            hasher.update(str((value.dtype, tuple(value.shape))).encode())
            hasher.update(raw_bytes(value.detach().cpu()))
        else:
            hasher.update(json.dumps(value).encode())
    return hasher.hexdigest()
