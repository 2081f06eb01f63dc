"""What `pixart caption --stats` does and prints: a table for a person, one JSON object for a program."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixart_cli.console import RichProgress, is_first_process, show, stdout_to_stderr
from pixart_cli.outputs import check_output
from pixart_core.errors import UserError
from pixart_core.recipe.caption_statistics import CaptionStatisticsStep
from pixart_core.recipe.load import step_from_options


def count_captions(
    values: Mapping[str, Any],
    overrides: Sequence[str],
    output: Path | None,
    *,
    captioning: Mapping[str, Any],
    as_json: bool,
    dry_run: bool,
) -> None:
    """Count captions that are there, and print the result; without `output` nothing is written.

    Args:
        values: options of `CaptionStatisticsStep` that have flags of their own.
        captioning: flags that only captioning has; none may be given.

    Raises:
        UserError: options or captions cannot be used.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in captioning.items() if value]
    if given:
        raise UserError(
            f"--stats counts captions that are there and captions nothing: leave {', '.join(given)} out"
        )
    flags = {field: f"--{field.replace('_', '-')}" for field in values}
    step = step_from_options(CaptionStatisticsStep, values, overrides, flags)
    if output is not None:
        check_output("caption --stats", output, step)
    if dry_run:
        options = step.model_dump(mode="json", exclude={"command"})
        show({"command": step.command, "output": output, "options": options}, as_json=as_json)
        return
    if not is_first_process():
        return  # under torchrun one process counts, with helpers of its own
    from pixart_core.data.caption_statistics import run_caption_statistics

    try:
        with stdout_to_stderr(), RichProgress() as progress:
            result = run_caption_statistics(step, output, progress)
    except KeyboardInterrupt:
        print("pixart: interrupted; counting begins anew the next time", file=sys.stderr)
        sys.exit(130)
    if as_json:
        show(result, as_json=True)
    else:
        _print(result)


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pixart_core.data.noun_table import statistics_columns

    headings, rows = statistics_columns(result)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading.replace("-", "\n"), justify="right", no_wrap=True, vertical="bottom")
    for label, cells in rows:
        table.add_row(label, *cells)
    console = Console(markup=False, highlight=False)
    console.print(table)
    print(f"\ntagger: {result['tagger']}; tokenizer: {result['tokenizer'] or 'none, tokens are not counted'}")
    for note in result["notes"]:
        console.print(f"- {note}")
    print("\n" + "\n".join(result["markdown"]))
    if result["output"]:
        print(f"\noutput: {result['output']}")
