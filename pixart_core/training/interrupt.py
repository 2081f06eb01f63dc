"""Ctrl-C and SIGTERM end a run at the next step, after its state is saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self


class StopRequests:
    """Context in which the first SIGINT or SIGTERM only sets `stop`; a second one acts at once.

    Outside the main thread Python allows no handlers: then signals keep their usual meaning.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.stop = False
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
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True

    @staticmethod
    def raise_interrupt(message: str) -> NoReturn:
        """End the run as Ctrl-C does, with a message for the user."""
        raise KeyboardInterrupt(message)
