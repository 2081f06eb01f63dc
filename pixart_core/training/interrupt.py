"""Ctrl-C, SIGTERM and SIGUSR1 end a run at the next step, after its state is saved."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequests:
    """Context in which a signal only asks for the end; a second Ctrl-C acts at once.

    Outside the main thread Python allows no handlers: then signals keep their usual meaning.

    Attributes:
        interrupted: by a person (Ctrl-C).
        asked: by the system: SIGTERM, or SIGUSR1 as SLURM's `--signal` sends it before the time is over.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    # A launcher passes on the Ctrl-C that the terminal has sent to everybody already.
    echo_seconds = 1.0

    def __init__(self) -> None:
        self.interrupted = False
        self.asked = False
        self._first = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.asked = True
        elif not self.interrupted:
            self.interrupted, self._first = True, time.monotonic()
        elif time.monotonic() - self._first > self.echo_seconds:
            raise KeyboardInterrupt
