"""Inputs of a step that are not there, and the command that makes each, or where it comes from."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pixart_core.artifacts.card import read_card, split_sources
from pixart_core.artifacts.patterns import expand_pattern, is_pattern
from pixart_core.errors import UserError
from pixart_core.recipe.caption import CaptionStep
from pixart_core.recipe.schema import Recipe
from pixart_core.recipe.training import TrainStep

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_WEIGHTS = (".pth", ".pt", ".safetensors", ".npz")
_NEVER_OF_THE_HUB = ("data", "captions", "prompts_file", "reference", "exclude")  # but for hf:ID


def missing_inputs(recipe: Recipe, step: BaseModel) -> dict[str, str]:
    """Path and origin of every input of `step` (its `{step: NAME}` resolved) that is missing.

    Known are the origins that the recipe tells (`needs`): a command of ours, or words about something that
    only has to be there; and how features are made.
    """
    missing: dict[str, str] = {}
    for field, source in split_sources(step)[1].items():
        command = _command(recipe.needs.get(source))
        if isinstance(step, TrainStep) and field == "features":
            command = command or f"pixart extract-features --data DATA --output {source}"
        there = _is_finished(Path(source)) or (field != "features" and _is_foreign(Path(source)))
        if command is not None and not there:
            missing[source] = command
    for value in _texts(step.model_dump(mode="json")):
        origin = recipe.needs.get(value)
        if origin is not None and _command(origin) is None and not Path(value).exists():
            missing[value] = origin
    return missing


def wrong_paths(name: str, step: BaseModel) -> dict[str, str]:
    """Inputs of the step `name` that are not there and cannot be of the hub, and which option names them."""
    wrong = {}
    for field, source in split_sources(step)[1].items():
        served = field == "captioner" and isinstance(step, CaptionStep) and step.api_base is not None
        local = field in _NEVER_OF_THE_HUB or source.endswith(_WEIGHTS) or not _HUB_ID.fullmatch(source)
        if served or source.startswith(("hf:", "https://")) or not local:
            continue
        path = Path(source).expanduser()
        if not (path.exists() or (is_pattern(source) and expand_pattern(source))):
            wrong[source] = f"no such file or folder, named by {name}.{field}"
    return wrong


def refuse_missing(missing: dict[str, str]) -> None:
    """Raises:
    UserError: something is missing; names where it comes from, one a line if there are several."""
    if missing:
        lines = [told_of_missing(path, origin) for path, origin in missing.items()]
        head = "" if len(lines) == 1 else f"{len(lines)} inputs are missing:\n  "
        raise UserError(head + "\n  ".join(lines))


def told_of_missing(path: str, origin: str) -> str:
    """What a user reads of one missing input."""
    if _command(origin) is None:
        return f"{path} is missing: {origin}"
    return f"{path} is missing or unfinished; make it with: {origin}"


def _command(origin: str | None) -> str | None:
    return origin if origin is not None and origin.startswith("pixart ") else None


def _texts(value: Any) -> Iterator[str]:
    """Every text in the options of a step, nested ones too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)


def _is_finished(path: Path) -> bool:
    return read_card(path) is not None


def _is_foreign(path: Path) -> bool:
    """Whether `path` is a model that pixart did not make: a file, or a folder that is no unfinished run."""
    configs = ("config.json", "model_index.json", "transformer/config.json")
    unfinished = (path / "checkpoints").is_dir()
    return path.is_file() or (not unfinished and any((path / name).is_file() for name in configs))
