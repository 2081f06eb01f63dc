"""The `pixart` command: registers the commands and starts the one that was asked for."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from pixart_cli.commands.caption import caption
from pixart_cli.commands.convert import convert
from pixart_cli.commands.evaluate import evaluate
from pixart_cli.commands.extract_features import extract_features
from pixart_cli.commands.run import run
from pixart_cli.commands.sample import sample
from pixart_cli.commands.train import train
from pixart_cli.ending import ending_at_once
from pixart_cli.errors import fail, user_errors
from pixart_cli.options import examples
from pixart_core import __version__
from pixart_core.slurm import join_slurm

# Libraries speak on their own unless told not to; a user's own setting wins.
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


def _hyphens(option: str) -> str:
    """`--global_batch_size` is `--global-batch-size`; values are left alone."""
    return option.replace("_", "-")


app = typer.Typer(
    name="pixart",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": _hyphens, "help_option_names": ["-h", "--help"]},
)


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "pixart run quickstart",
        "pixart train --recipe quickstart --step stage2 learning_rate=1.0e-3",
        "pixart sample --checkpoint runs/quickstart/pipeline --guidance-scale 2 "
        '"a small red circle at the left on a white background"',
    ),
)
def pixart(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Train, adapt and measure PixArt-alpha text-to-image models."""
    if version:
        typer.echo(f"pixart {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


for command in (caption, extract_features, train, sample, evaluate, convert, run):
    name = command.__name__.replace("_", "-")
    app.command(name, epilog=command.__dict__["epilog"])(command)


def quieten() -> None:
    """Let libraries speak only of what is wrong.

    bitsandbytes tells at each start which kernel it does without.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line.

    Exit codes: 0, 1 a failure, 2 a mistake in what was asked, 75 to be continued, 130 Ctrl-C.
    """
    quieten()
    join_slurm()
    with ending_at_once(), user_errors():
        try:
            code = get_command(app).main(args=args, prog_name="pixart", standalone_mode=False)
        except typer.Abort:
            raise KeyboardInterrupt from None
        except Exception as error:
            # Wrong usage; the class has another home in each version of typer.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            fail(f"{message()} (see pixart --help)", 2)
        sys.exit(code if isinstance(code, int) else 0)
