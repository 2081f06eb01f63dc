"""What a chain remembers of its steps, in `ROOT/.chain`, and the lock that keeps two chains apart."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pixart_core.artifacts.publish import write_json
from pixart_core.errors import UserError

CHAIN = ".chain"
STALE = ".stale"


@dataclasses.dataclass(frozen=True)
class Record:
    """A step that was started, or (with a result) one that is done.

    Attributes:
        fingerprint: over everything below that decides the output.
        command: the step's command.
        options: resolved options without sources.
        inputs: field and fingerprint of each source.
        version: of pixart.
        card: fingerprint of the output's card; None until done.
        result: what the runner returned.
        seconds: how long the last run of it took.
    """

    fingerprint: str
    command: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str]
    version: str
    card: str | None = None
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in `path`, or None when there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of the chain in `root`."""

    root: Path

    def done(self, step: str) -> Record | None:
        """The record of the finished output of `step`."""
        return Record.read(self._path(step, "done"))

    def started(self, step: str) -> Record | None:
        """The record of a run of `step` that did not finish."""
        return Record.read(self._path(step, "started"))

    def write_started(self, step: str, record: Record) -> None:
        """Say that the output folder of `step` belongs to `record` from now on."""
        self._path(step, "done").unlink(missing_ok=True)
        write_json(self._path(step, "started"), dataclasses.asdict(record))

    def write_done(self, step: str, record: Record) -> None:
        """Say that `step` is finished."""
        write_json(self._path(step, "done"), dataclasses.asdict(record))
        self._path(step, "started").unlink(missing_ok=True)

    def _path(self, step: str, state: str) -> Path:
        return self.root / CHAIN / f"{step}.{state}.json"


def move_aside(root: Path, step: str, fingerprint: str | None) -> Path:
    """Move the output of `step` to `ROOT/.stale/STEP-FINGERPRINT` (nothing is ever deleted)."""
    name = f"{step}-{fingerprint or 'unknown'}"
    target, number = root / STALE / name, 1
    while target.exists():
        number += 1
        target = root / STALE / f"{name}-{number}"
    target.parent.mkdir(parents=True, exist_ok=True)
    (root / step).rename(target)
    return target


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of `root`; the system frees it when the process ends, however it ends.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock
        yield
        return
    path = root / CHAIN / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(f"another pixart run (process {owner}) is working in {root}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
