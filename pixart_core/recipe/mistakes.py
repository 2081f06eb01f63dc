"""pydantic's errors in the words of a recipe: paths as in the YAML, and what to write instead."""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from pixart_core.recipe.annotations import (
    TAG_FIELDS,
    child,
    is_model,
    literals,
    members,
    tag_field,
    tagged_member,
    tags,
)

Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One thing to fix: where (keys as in the YAML) and what."""

    path: Path
    message: str


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an error of pydantic is, without the names of union members that it puts in between."""

    path: Path
    parent: Any  # annotation that holds the last key
    annotation: Any  # annotation of the value itself
    choice: Path | None  # path of an untagged union on the way
    options: list[Any]  # its members
    member: Any  # which of them complains


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` for the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""


def dotted(path: Path) -> str:
    """`steps.a.sizes[0]` as a person writes it: `a.sizes[0]`."""
    parts = (str(path[1]), *path[2:]) if len(path) > 1 and path[0] == "steps" else path
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> list[Mistake]:
    """Turn every error about `data` read as `model` into a `Mistake`."""
    # Defaults that follow from other fields are not known beside a mistake, and no mistake themselves.
    told = [item for item in error.errors(include_url=False) if item["type"] != "default_factory_not_called"]
    placed = [(_place(item["loc"], model), dict(item)) for item in told]
    mistakes: list[Mistake] = []
    for place, item in placed:
        if place.choice is None:
            mistakes.append(_mistake(place, item))
        else:
            mistakes += _untagged(place, item, _value_at(data, place.choice))
    return _without_echoes(mistakes)


def _place(loc: Path, model: Any) -> _Place:
    path: Path = ()
    parent, annotation, choice, member = None, model, None, None
    choices: list[Any] = []
    for part in loc:
        options = members(annotation)
        if len(options) > 1:
            # pydantic names the member of a union; the YAML does not.
            picked = tagged_member(annotation, part)
            if tag_field(annotation) is None:
                picked = _member_called(options, str(part))
                choice, choices, member = path, options, picked
            annotation = picked
        elif part != "[key]":
            path, parent, annotation = (*path, part), options[0], child(annotation, part)
    return _Place(path, parent, annotation, choice, choices, member)


def _member_called(options: list[Any], label: str) -> Any:
    for option in options:
        name = option.__name__ if isinstance(option, type) else str(get_origin(option))
        if name == label or (get_origin(option) is tuple and label.startswith("tuple")):
            return option
        if literals(option) and label.startswith("literal"):
            return option
    return None


def _untagged(place: _Place, item: dict[str, Any], value: Any) -> list[Mistake]:
    """Keep what the member meant says; if none was meant, say once what would do."""
    assert place.choice is not None
    options = place.options
    wants_model = isinstance(value, Mapping) and any(is_model(option) for option in options)
    wants_list = isinstance(value, list | tuple) and any(get_origin(option) is tuple for option in options)
    if wants_model or wants_list:
        meant = is_model(place.member) if wants_model else get_origin(place.member) is tuple
        return [_mistake(place, item)] if meant else []
    words = [word for option in options for word in literals(option)]
    if any(is_model(option) for option in options):
        expected = "a path, a hub id or {step: NAME}"
    elif str in options:
        expected = "text"
    else:
        expected = f"{', '.join(words)} or a list"
    return [Mistake(place.choice, f"expected {expected}, got {_show(value)}{_near(value, words)}")]


def _mistake(place: _Place, item: dict[str, Any]) -> Mistake:
    kind, value, path, context = item["type"], item["input"], place.path, item.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(place.parent.model_fields) if is_model(place.parent) else []
        near = _one_level_down(place.parent, path) or did_you_mean(str(path[-1]), known)
        listed = near or (f"; known: {', '.join(known)}" if known else "")
        return Mistake(path, f"unknown key{listed}")
    if kind == "missing":
        field = place.parent.model_fields.get(path[-1]) if is_model(place.parent) else None
        about = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
        return Mistake(path, f"missing{about}")
    if kind == "union_tag_not_found":
        return _untold_kind(place, value)
    if kind == "union_tag_invalid":
        field_name, known = context["discriminator"].strip("'"), tags(place.annotation)
        return Mistake((*path, field_name), _one_of(known, context["tag"]))
    if kind == "literal_error":
        return Mistake(path, _one_of(literals(members(place.annotation)[0]), value))
    if kind == "value_error":
        return Mistake(path, str(context["error"]))
    return Mistake(path, _plain(kind, item["msg"], value))


def _one_level_down(parent: Any, path: Path) -> str:
    """`, did you mean stage1.optimizer.weight_decay?` for a key of the options within those of `parent`."""
    key = str(path[-1])
    fields = parent.model_fields if is_model(parent) and key not in TAG_FIELDS else {}
    for name, field in fields.items():
        if any(is_model(option) and key in option.model_fields for option in members(field.annotation)):
            return f", did you mean {dotted((*path[:-1], name, key))}?"
    return ""


def _untold_kind(place: _Place, value: Any) -> Mistake:
    field = tag_field(place.annotation) or "kind"
    typed = difflib.get_close_matches(field, [str(key) for key in value], n=1) if value else []
    if typed:
        return Mistake((*place.path, typed[0]), f"unknown key, did you mean {field}?")
    return Mistake((*place.path, field), f"missing: one of {', '.join(tags(place.annotation))}")


def _plain(kind: str, message: str, value: Any) -> str:
    got = f", got {_show(value)}"
    if kind.startswith("int_"):
        return f"expected a whole number{got}"
    if kind.startswith("float_"):
        return f"expected a number{got}"
    if kind.startswith("bool_"):
        return f"expected true or false{got}"
    if kind == "string_type":
        return f"expected text{got}" + (' (put it in "quotes")' if isinstance(value, int | float) else "")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected keys and values{got}"
    if kind in ("tuple_type", "list_type"):
        return f"expected a list{got}"
    if kind == "string_pattern_mismatch":
        return f"only letters, digits and . _ - may be used, a letter or digit first{got}"
    if kind in ("too_short", "too_long"):
        return re.sub(r"^(Tuple|Dictionary|List) should", "should", message)
    if kind == "finite_number":
        return f"expected a finite number{got}"
    return message.replace("Input should be", "expected a value", 1) + got


def _one_of(known: list[str], value: Any) -> str:
    return f"expected {known[0] if len(known) == 1 else 'one of ' + ', '.join(known)}, got {_show(value)}" + (
        _near(value, known)
    )


def _near(value: Any, known: list[str]) -> str:
    return did_you_mean(value, known) if isinstance(value, str) else ""


def _show(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _value_at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _without_echoes(mistakes: list[Mistake]) -> list[Mistake]:
    """Drop repeats, and `missing` where a misspelt key beside it was meant."""
    meant = {
        (*m.path[:-1], m.message.removeprefix("unknown key, did you mean ").rstrip("?"))
        for m in mistakes
        if m.message.startswith("unknown key, did you mean ")
    }
    kept = [m for m in mistakes if not (m.path in meant and m.message.startswith("missing"))]
    return list(dict.fromkeys(kept))
