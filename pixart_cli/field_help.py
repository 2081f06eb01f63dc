"""The fields that `FIELD=VALUE` may set, for the help of a command: read from the step's own model."""

import json
import textwrap
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

WIDTH = 100  # of a terminal; names take the first columns
NAMES = 30


def field_lines(model: type[BaseModel], covered: Collection[str]) -> list[str]:
    """A line or more for each field of `model` that no flag (named in `covered`) sets."""
    lines = []
    for name, default, text in _fields(model):
        if name.split(".")[0] in covered or name == "command":
            continue
        head = f"{name}={default}" if default is not None else name
        wrapped = textwrap.wrap(text, WIDTH - NAMES - 4)
        if len(head) >= NAMES or not wrapped:
            lines.append(f"  {head}")
        else:
            lines.append(f"  {head:<{NAMES}}{wrapped.pop(0)}")
        lines += [" " * (NAMES + 2) + line for line in wrapped]
    return lines


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None, str]]:
    """(dotted name, default as one writes it, what it is) of every field."""
    for name, field in model.model_fields.items():
        nested = _nested_model(field.annotation)
        if nested is not None:
            if field.default is None:  # off as a whole, unless one of its fields is given
                yield f"{prefix}{name}", None, field.description or ""
            yield from _fields(nested, f"{prefix}{name}.")
            continue
        text = field.description or ""
        choices = _choices(field.annotation)
        if choices and not all(choice in text for choice in choices):
            text = f"{', '.join(choices)}. {text}".strip()
        yield f"{prefix}{name}", _written(field.default), text


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """The one model that a field holds, also if it may be left out; None for a choice of several."""
    parts = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    return models[0] if len(models) == len(parts) == 1 else None


def _choices(annotation: Any) -> list[str]:
    """The words of a Literal, also of an optional one."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [choice for part in typing.get_args(annotation) for choice in _choices(part)]
    return []


def _written(default: Any) -> str | None:
    if default is PydanticUndefined or default is None:
        return None
    if isinstance(default, str):
        return default
    # As YAML reads it back: [a, b], true, null.
    return json.dumps(to_jsonable_python(default)).replace('"', "")
