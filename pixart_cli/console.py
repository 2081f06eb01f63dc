"""Progress on stderr and results on stdout."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pixart_core.recipe.document import dump_yaml

PLAIN_SECONDS = 15.0
LEFT = " left"  # how a note ends that tells the time left


def is_first_process() -> bool:
    """Whether this process speaks for all: under torchrun or accelerate only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


class RichProgress:
    """A `pixart_core.progress.Progress`: bars on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=not is_first_process())
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._plain: dict[str, _PlainTask] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_bars()

    def start(self, task: str, total: int | None) -> None:
        """Show a new bar, or begin to count."""
        if not self.console.is_terminal:
            self._plain[task] = _PlainTask(total)
            return
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _TimeRemaining(),
            )
            self._bars = _Bars(*columns, console=self.console)
            self._bars.start()
        if task in self._ids:
            self._bars.remove_task(self._ids[task])
        self._ids[task] = self._bars.add_task(task, total=total, note="")

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        """Move the bar on, or print a line if the last one is old."""
        if self._bars is not None and task in self._ids:
            self._bars.advance(self._ids[task], units)
            if note:
                self._bars.update(self._ids[task], note=note)
        elif task in self._plain and (line := self._plain[task].advance(units, note)):
            self.say(f"{task}: {line}")

    def finish(self, task: str) -> None:
        """End the bar; it stays on the screen as a line."""
        if task in self._plain:
            self.say(f"{task}: {self._plain.pop(task).finished()}")
        elif self._bars is not None and task in self._ids:
            del self._ids[task]
            if not self._ids:
                self._stop_bars()

    def say(self, message: str) -> None:
        """Print one line on stderr."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._ids = None, {}


class _Bars(Progress):
    """Bars with their notes below: beside a bar a note of a training would have no room."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Padding(Text(task.fields["note"], style="dim"), (0, 0, 0, 2))


class _TimeRemaining(TimeRemainingColumn):
    """Nothing beside a note that tells the time left itself, from more than the last half minute."""

    def render(self, task: Task) -> Text:
        return Text() if task.fields["note"].endswith(LEFT) else super().render(task)


class _PlainTask:
    def __init__(self, total: int | None) -> None:
        self.total, self.done, self.note = total, 0, ""
        self.begin = self.printed = time.monotonic()

    def advance(self, units: int, note: str) -> str | None:
        self.done, self.note = self.done + units, note or self.note
        if time.monotonic() - self.printed < PLAIN_SECONDS:
            return None
        self.printed = time.monotonic()
        return f"{self._count()} {self.note}".rstrip()

    def finished(self) -> str:
        return f"{self._count()} in {time.monotonic() - self.begin:.1f} s {self.note}".rstrip()

    def _count(self) -> str:
        return str(self.done) if self.total is None else f"{self.done}/{self.total}"


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what libraries print (and what their processes print) to stderr: stdout holds the result."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # started with stdout closed
        saved = None
    if saved is not None:
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def show(
    result: Mapping[str, Any], *, as_json: bool, as_text: Callable[[Mapping[str, Any]], str] | None = None
) -> None:
    """Print the one result of a command on stdout: a JSON object, or for a person `as_text` of it or YAML."""
    if not is_first_process():
        return
    plain = json.loads(json.dumps(result, default=str))
    print(json.dumps(plain) if as_json else as_text(plain) if as_text else dump_yaml(plain).rstrip())
