"""Trailing `step.field=value` overrides, put into a recipe's data before it is read."""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel

from pixart_core.errors import UserError
from pixart_core.recipe.annotations import child, is_mapping, is_model, members, tag_field, tagged_member
from pixart_core.recipe.document import parse_value
from pixart_core.recipe.mistakes import Path, did_you_mean, dotted
from pixart_core.recipe.schema import Recipe


@dataclasses.dataclass(frozen=True)
class Override:
    """One `key=value` as typed, and where it goes."""

    text: str
    path: Path


Locate = Callable[[list[str]], tuple[Path, list[str]]]
"""From the parts of a key: (path already found, parts still to follow). UserError: no such place."""


def apply_overrides(
    data: Any, texts: Iterable[str], root: type[BaseModel], locate: Locate
) -> tuple[Any, list[Override], list[str]]:
    """Return (a changed copy of `data`, the overrides that went in, what is wrong with the others)."""
    data, done, mistakes = copy.deepcopy(data), [], []
    for text in texts:
        key, equals, raw = text.partition("=")
        try:
            if not equals or not key.strip():
                raise UserError("write it as key=value")
            found, rest = locate(key.strip().split("."))
            override = Override(text, _put(data, root, found, rest, parse_value(raw)))
            done.append(override)
        except UserError as error:
            mistakes.append(f"override {text!r}: {error}")
    return data, done, mistakes


def locate_in_recipe(data: dict[str, Any], focus: str | None) -> Locate:
    """Keys of a recipe: `step.field`, `command.field` if one step has it, `name`, `output`, `plan.field`.

    With `focus` (a step or command), a key that names no step is a field of that step.
    """
    raw = data.get("steps")
    steps = {k: v for k, v in raw.items() if isinstance(k, str)} if isinstance(raw, dict) else {}
    by_command: dict[str, list[str]] = {}
    for name, step in steps.items():
        if isinstance(step, dict):
            by_command.setdefault(str(step.get("command")), []).append(name)

    def step_called(word: str) -> str | None:
        spellings = (word, word.replace("_", "-"), word.replace("-", "_"))
        exact = next((spelling for spelling in spellings if spelling in steps), None)
        if exact is not None:
            return exact
        found = next((by_command[spelling] for spelling in spellings if spelling in by_command), [])
        if len(found) > 1:
            raise UserError(f"several {word} steps, name one: {', '.join(found)}")
        return found[0] if found else None

    def locate(parts: list[str]) -> tuple[Path, list[str]]:
        if len(parts) == 1 and parts[0] in ("name", "output"):
            return (), parts
        if len(parts) > 1 and parts[0] == "plan" and "plan" not in steps:
            return (), parts
        if parts[0] == "steps" and "steps" not in steps:
            parts = parts[1:]
        name = step_called(parts[0]) if len(parts) > 1 else None
        if name is not None:
            return ("steps", name), parts[1:]
        home = step_called(focus) if focus else (next(iter(steps)) if len(steps) == 1 else None)
        if home is not None:
            return ("steps", home), parts
        if len(parts) == 1:
            raise UserError(f"name the step, as in {next(iter(steps), 'step')}.{parts[0]}=...")
        known = [*steps, *by_command]
        listed = f"; steps: {', '.join(steps) or 'none'}"
        raise UserError(f"no step {parts[0]!r}{did_you_mean(parts[0], known) or listed}")

    return locate


def locate_in_step(parts: list[str]) -> tuple[Path, list[str]]:
    """Keys of a single command: its fields."""
    return (), parts


def _put(data: Any, root: type[BaseModel], found: Path, rest: list[str], value: Any) -> Path:
    """Set `value` at found + rest, making the mappings on the way; the path with its real keys."""
    node, annotation = data, _step_model(data, root, found)
    for part in found:
        node = node[part]
    path = found
    for index, part in enumerate(rest):
        key = part if is_mapping(annotation) else part.replace("-", "_")
        path = (*path, key)
        if not isinstance(node, dict):
            raise UserError(f"{dotted(path[:-1]) or 'the recipe'} holds no keys")
        if index == len(rest) - 1:
            node[key] = value
            break
        inner = child(annotation, key)
        if not isinstance(node.get(key), dict):
            if is_model(annotation) and key not in annotation.model_fields:
                # Setting it would hide the wrong key behind a new mapping.
                raise UserError(f"{key}: unknown key{did_you_mean(key, annotation.model_fields)}")
            node[key] = _defaults_kind(annotation, key)
        node, annotation = node[key], _chosen(inner, node[key])
    return path


def _step_model(data: Any, root: type[BaseModel], found: Path) -> Any:
    if root is not Recipe or not found:
        return root
    step = data["steps"][found[1]]
    return tagged_member(child(child(Recipe, "steps"), found[1]), _get(step, "command"))


def _chosen(annotation: Any, value: Any) -> Any:
    field = tag_field(annotation)
    return tagged_member(annotation, _get(value, field)) if field else members(annotation)[0]


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _defaults_kind(annotation: Any, key: str) -> dict[str, Any]:
    """`{}`, or the kind of the default: `optimizer.weight_decay=0` means that of the default optimizer."""
    field = annotation.model_fields.get(key) if is_model(annotation) else None
    kind = getattr(field.default, "kind", None) if field is not None else None
    return {} if kind is None else {"kind": kind}
