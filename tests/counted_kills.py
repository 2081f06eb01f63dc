"""Kills at counted calls: they fall on the same place however fast or busy the machine is."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import CodeType, FrameType

EVERY = ("call", "return", "c_call", "c_return")


def on_call(
    then: Callable[[], None],
    file: str | tuple[str, ...],
    function: str | None = None,
    events: Sequence[str] = EVERY,
) -> None:
    """Do `then` from now on at each call and return of code whose file ends with `file`.

    Those of C among them: write, fsync and rename are places to die. In this thread and in those that it
    starts, by their profiler.

    Args:
        function: of this function alone.
    """
    watched: dict[CodeType, bool] = {}

    def hook(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if code not in watched:
            watched[code] = code.co_filename.endswith(file) and function in (None, code.co_name)
        if watched[code] and event in events:
            then()

    threading.setprofile(hook)
    sys.setprofile(hook)


def kill_at_call(
    number: int, file: str | tuple[str, ...], function: str | None = None, events: Sequence[str] = EVERY
) -> None:
    """Kill this process (SIGKILL) at such a call (see `on_call`), the `number`-th from now on."""
    seen = itertools.count(1)

    def then() -> None:
        if next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_call(then, file, function, events)


def kill_at_file_operation(number: int, sign: str) -> None:
    """Kill this process (SIGKILL) at its `number`-th file operation after `sign` came to be.

    Such an operation opens, renames or removes a file, or makes a folder.
    """
    seen = itertools.count(1)

    def hook(event: str, _: object) -> None:
        watched = event in ("open", "os.mkdir", "os.rename", "os.remove")
        if watched and os.path.exists(sign) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
