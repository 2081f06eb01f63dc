"""Run one command: where the result goes, what is shown of it."""

import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pixart_cli.console import RichProgress, is_first_process, show, stdout_to_stderr
from pixart_cli.outputs import check_output, default_output
from pixart_cli.runners import RUNNERS
from pixart_core.recipe.base import Strict
from pixart_core.recipe.estimate import estimate


def execute(
    command: str,
    step: Strict,
    output: Path | None,
    name: str,
    *,
    as_json: bool,
    dry_run: bool,
    long: Collection[str] = (),
    planned: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] | None = None,
    as_text: Callable[[Mapping[str, Any]], str] | None = None,
    result_as_text: Callable[[Mapping[str, Any]], str] | None = None,
) -> None:
    """Run `step` into `output` (default: named after `name`) and print its result on stdout.

    Entries of the result named in `long` are printed with `--json` only. `planned` (or what it makes of
    the output folder) is added to what a dry run prints, by default the estimate; `as_text` words it for a
    person, `result_as_text` the result.

    Raises:
        UserError: `output` holds something else; and what the command raises.
    """
    output = output_of(command, step, output, name)
    if dry_run:
        options = step.model_dump(mode="json", exclude={"command"})
        plan = {"command": command, "output": str(output), "options": options}
        told = planned(output) if callable(planned) else planned
        plan |= told if told is not None else {"estimate": estimate(step)}
        show(plan, as_json=as_json, as_text=as_text)
        return
    with stdout_to_stderr(), RichProgress() as progress:
        result = RUNNERS[command](step, output, progress)
    if not as_json:
        result = {key: value for key, value in result.items() if key not in long}
    show(result, as_json=as_json, as_text=result_as_text)


def output_of(command: str, step: Strict, output: Path | None, name: str) -> Path:
    """`output`, or a default named after `name`, which is told.

    Raises:
        UserError: it holds something else.
    """
    if output is None:
        output = default_output(command, name, step)
        if is_first_process():
            print(f"pixart: output goes to {output}", file=sys.stderr)
    check_output(command, output, step)
    return output
