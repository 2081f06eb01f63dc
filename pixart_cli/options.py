"""Options that several commands share."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from pixart_cli.field_help import field_lines

F = TypeVar("F", bound=Callable[..., Any])

Output = Annotated[Path | None, typer.Option(help="Folder for the result.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.", show_default=False)]
Limit = Annotated[int | None, typer.Option(help="Use at most this many.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: the best there is.")]
BatchSize = Annotated[int | None, typer.Option(help="Items at a time.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and stop.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="FIELD=VALUE", help="Any of the fields below.", show_default=False),
]


def examples(*lines: str) -> str:
    """The epilog of a help text; the backspace keeps the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def with_examples(*lines: str, fields_of: type[BaseModel] | None = None) -> Callable[[F], F]:
    """Attach examples to a command's function, after the fields of its step that have no flag."""

    def attach(function: F) -> F:
        flags = inspect.signature(function).parameters
        fields = field_lines(fields_of, flags) if fields_of else []
        table = "\b\nFields:\n" + "\n".join(fields) + "\n\n" if fields else ""
        function.__dict__["epilog"] = table + examples(*lines)
        return function

    return attach
