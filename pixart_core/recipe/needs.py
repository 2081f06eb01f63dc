"""Inputs of a step that are not there, and the command that makes each."""

from pathlib import Path

from pydantic import BaseModel

from pixart_core.artifacts.card import read_card, split_sources
from pixart_core.errors import UserError
from pixart_core.recipe.schema import Recipe
from pixart_core.recipe.training import TrainStep


def missing_inputs(recipe: Recipe, step: BaseModel) -> dict[str, str]:
    """Path and command of every input of `step` (its `{step: NAME}` resolved) that is missing.

    Known are the commands that the recipe tells (`needs`), and how features are made.
    """
    missing: dict[str, str] = {}
    for field, source in split_sources(step)[1].items():
        command = recipe.needs.get(source)
        if isinstance(step, TrainStep) and field == "features":
            command = command or f"pixart extract-features --data DATA --output {source}"
        if command is not None and not _is_there(Path(source), needs_card=field == "features"):
            missing[source] = command
    return missing


def refuse_missing(missing: dict[str, str]) -> None:
    """Raises:
    UserError: something is missing; names the commands that make it, one a line if there are several."""
    if missing:
        lines = [f"{path} is missing or unfinished; make it with: {cmd}" for path, cmd in missing.items()]
        head = "" if len(lines) == 1 else f"{len(lines)} inputs are missing:\n  "
        raise UserError(head + "\n  ".join(lines))


def _is_there(path: Path, *, needs_card: bool) -> bool:
    """Whether an input can be used: a file, or a folder (of ours a finished one)."""
    return path.is_file() or (read_card(path) is not None if needs_card else path.is_dir())
