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
        there = _is_finished(Path(source)) or (field != "features" and _is_foreign(Path(source)))
        if command is not None and not there:
            missing[source] = command
    return missing


def refuse_missing(missing: dict[str, str]) -> None:
    """Raises:
    UserError: something is missing; names the commands that make it, one a line if there are several."""
    if missing:
        lines = [f"{path} is missing or unfinished; make it with: {cmd}" for path, cmd in missing.items()]
        head = "" if len(lines) == 1 else f"{len(lines)} inputs are missing:\n  "
        raise UserError(head + "\n  ".join(lines))


def _is_finished(path: Path) -> bool:
    return read_card(path) is not None


def _is_foreign(path: Path) -> bool:
    """Whether `path` is a model that pixart did not make: a file, or a folder that is no unfinished run."""
    configs = ("config.json", "model_index.json", "transformer/config.json")
    unfinished = (path / "checkpoints").is_dir()
    return path.is_file() or (not unfinished and any((path / name).is_file() for name in configs))
