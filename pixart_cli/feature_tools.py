"""What `pixart extract-features` does with features that are there: verify, repair, export, import."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pixart_cli.console import RichProgress, is_first_process, show, stdout_to_stderr
from pixart_cli.outputs import check_output
from pixart_core.errors import UserError
from pixart_core.recipe.features import ExportFormat, ImportFeaturesStep
from pixart_core.recipe.load import step_from_options

TOOLS = ("verify", "export", "import")


def chosen_tool(
    data: str | None, tools: Mapping[str, str | None], repair: bool, to: str | None
) -> str | None:
    """Which of `TOOLS` was asked for; None: encode `data`.

    Raises:
        UserError: none or several of them, or an option of another one.
    """
    given = [f"--{name}" for name, value in tools.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are different tasks; give one of them")
    tool = given[0].removeprefix("--") if given else None
    if repair and tool != "verify":
        raise UserError("--repair goes with --verify STORE")
    if (to is None) == (tool == "export"):
        raise UserError(f"--export goes with --to ({', '.join(get_args(ExportFormat))})")
    if to is not None and to not in get_args(ExportFormat):
        raise UserError(f"--to: {to!r} is none of {', '.join(get_args(ExportFormat))}")
    if tool is None and data is None:
        raise UserError("give --data (or --verify, --export or --import)")
    if tool in ("export", "import") and data is not None:
        raise UserError(f"--{tool} reads no --data; leave it out")
    return tool


def refuse_others(tool: str, given: Mapping[str, Any], allowed: Sequence[str] = ()) -> None:
    """Refuse flags of encoding beside a tool, which would do nothing.

    Raises:
        UserError: names them.
    """
    wrong = [f"--{name.replace('_', '-')}" for name, value in given.items() if value and name not in allowed]
    if wrong:
        raise UserError(f"--{tool} has no use for {', '.join(wrong)}; leave it out")


def verify(store: Path, places: Mapping[str, Any], *, repair: bool, as_json: bool) -> None:
    """Look at every sample of `store`; with `repair`, make the damaged shards again.

    Exit code 1 if the store is damaged (and was not repaired).

    Raises:
        UserError: no store, or it cannot be repaired.
    """
    if not is_first_process():
        return
    from pixart_core.encoders.feature_repair import RepairOptions, repair_features, verify_features

    with stdout_to_stderr(), RichProgress() as progress:
        if repair:
            result = repair_features(store, RepairOptions(**places), progress)
        else:
            result = verify_features(store, progress)
    show(result, as_json=as_json)
    if not result["sound"]:
        sys.exit(1)


def export(store: Path, to: str, output: Path | None, *, as_json: bool) -> None:
    """Write `store` in another format.

    Raises:
        UserError: no finished store, or `output` cannot be used.
    """
    if output is None:
        raise UserError("--export needs --output, the folder to write")
    if not is_first_process():
        return
    from pixart_core.encoders.feature_export import export_features

    with stdout_to_stderr(), RichProgress() as progress:
        result = export_features(store, to, output, progress)  # type: ignore[arg-type]
    show(result, as_json=as_json)


def bring_in(
    source: str,
    overrides: Sequence[str],
    device: str | None,
    output: Path | None,
    *,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Make a feature store of the features in `source`.

    Raises:
        UserError: they cannot be used, or `output` holds something else.
    """
    flags = {"source": "--import", "device": "--device"}
    step = step_from_options(ImportFeaturesStep, {"source": source, "device": device}, overrides, flags)
    if output is None:
        raise UserError("--import needs --output, the folder of the store to make")
    check_output("extract-features --import", output, step)
    if dry_run:
        options = step.model_dump(mode="json", exclude={"command"})
        show({"command": step.command, "output": str(output), "options": options}, as_json=as_json)
        return
    if not is_first_process():
        return
    from pixart_core.encoders.feature_import import import_features

    with stdout_to_stderr(), RichProgress() as progress:
        result = import_features(step, output, progress)
    show(result, as_json=as_json)
