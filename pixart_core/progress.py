"""How core functions tell how far they are, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """A listener: the CLI draws bars, tests and libraries pass `Silent()`."""

    def start(self, task: str, total: int | None) -> None:
        """Begin a task of `total` units (None: unknown); a running task of that name restarts."""

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        """Move `task` on by `units`; `note` is a short text such as `loss 0.123`."""

    def finish(self, task: str) -> None:
        """End `task`."""

    def say(self, message: str) -> None:
        """Print one line for the user (stderr in the CLI)."""


class Silent:
    """A `Progress` that ignores everything."""

    def start(self, task: str, total: int | None) -> None: ...

    def advance(self, task: str, units: int = 1, note: str = "") -> None: ...

    def finish(self, task: str) -> None: ...

    def say(self, message: str) -> None: ...
