"""Questions about the schema's annotations: which models a union offers, what a key leads to."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

TAG_FIELDS = ("command", "kind")


def members(annotation: Any) -> list[Any]:
    """What `annotation` may be: several for a union, else one; `Annotated` and `None` are taken off."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [item for item in get_args(annotation) if item is not type(None)]
        return members(inner[0]) if len(inner) == 1 else inner
    return [annotation]


def is_model(annotation: Any) -> bool:
    """Whether `annotation` is a pydantic model class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_mapping(annotation: Any) -> bool:
    """Whether `annotation` is a dict whose keys the user chooses."""
    return get_origin(members(annotation)[0]) is dict


def tag_field(annotation: Any) -> str | None:
    """`command` or `kind` when `annotation` is a union of models told apart by that field."""
    options = members(annotation)
    if len(options) < 2:
        return None
    for field in TAG_FIELDS:
        if all(is_model(option) and field in option.model_fields for option in options):
            return field
    return None


def tags(annotation: Any) -> list[str]:
    """The values that the tag of a tagged union takes."""
    field = tag_field(annotation)
    if field is None:
        return []
    return [tag for option in members(annotation) for tag in literals(option.model_fields[field].annotation)]


def literals(annotation: Any) -> list[str]:
    """The values of `annotation` if it is a `Literal`, as text."""
    return [str(item) for item in get_args(annotation)] if get_origin(annotation) is Literal else []


def tagged_member(annotation: Any, tag: Any) -> Any:
    """The model of a tagged union that goes by `tag`, or None."""
    field = tag_field(annotation)
    for option in members(annotation):
        if field is not None and tag in literals(option.model_fields[field].annotation):
            return option
    return None


def child(annotation: Any, key: str | int) -> Any:
    """The annotation of `key` inside `annotation` (a model, dict, tuple or list), or None."""
    options: Sequence[Any] = members(annotation)
    for option in options:
        if is_model(option) and key in option.model_fields:
            return option.model_fields[str(key)].annotation
    origin, inner = get_origin(options[0]), get_args(options[0])
    if origin is dict:
        return inner[1]
    if origin is tuple and Ellipsis not in inner:
        return inner[key] if isinstance(key, int) and key < len(inner) else None
    return inner[0] if origin in (tuple, list) else None
