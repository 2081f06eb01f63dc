"""Errors that a person can act on.

The command line turns `UserError` into one line and exit code 2 and any other
`PixartError` into one line and exit code 1 (75 for `UnfinishedError`); everything else is a
bug and keeps its traceback.
"""


class PixartError(Exception):
    """A failure with a message written for the person who ran the command."""


class UserError(PixartError, ValueError):
    """A mistake in what the user gave: a path, an option, a recipe, a file's content."""


class UnfinishedError(PixartError):
    """Work that ended early as it was asked to, and is kept: the same command continues it (exit code 75)."""


class ToldElsewhereError(PixartError):
    """Another process of this launch tells the person what happened; this one only ends with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"another process tells why (exit code {code})")
        self.code = code
