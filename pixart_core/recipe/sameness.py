"""Whether a step's options are those that a folder was begun with."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from pixart_core.artifacts.card import card_for
from pixart_core.recipe.base import Strict
from pixart_core.recipe.plan import flat

Changes = dict[str, tuple[Any, Any]]
"""Dotted option and its value (before, now)."""


def recorded(step: Strict) -> dict[str, dict[str, Any]]:
    """What decides the result of `step`: {"options": ..., "inputs": fingerprints}, as JSON holds it."""
    card = card_for("", step, {})
    plain: dict[str, dict[str, Any]] = json.loads(
        json.dumps({"options": dict(card.options), "inputs": dict(card.inputs)})
    )
    return plain


def same_work(stored: Mapping[str, Any], step: Strict) -> bool:
    """Whether what `recorded` once gave is that of `step`, but for options that only change the rounding."""
    return all(field_of(key) in step.rounding for key in recorded_changes(stored, step))


def recorded_changes(stored: Mapping[str, Any], step: Strict) -> Changes:
    """How what `recorded` once gave differs from `step`.

    An option that an earlier pixart did not know did what its default does; one that this pixart does not
    know any more counts for nothing.
    """
    now, fields = recorded(step), type(step).model_fields
    before = {key: value for key, value in stored["options"].items() if key in now["options"]}
    for key in now["options"].keys() - before.keys():
        default = fields[key].get_default(call_default_factory=True, validated_data={})
        before[key] = step.model_copy(update={key: default}).model_dump(mode="json", warnings=False)[key]
    options = differences(json.loads(json.dumps(before)), now["options"])
    inputs = differences(stored["inputs"], now["inputs"])
    return options | {f"input {key}": values for key, values in inputs.items()}


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], among: Collection[str] | None = None
) -> Changes:
    """Dotted keys whose values differ; with `among`, only those inside these fields."""
    old, new = flat(before), flat(now)
    keys = sorted(key for key in old.keys() | new.keys() if among is None or field_of(key) in among)
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def field_of(key: str) -> str:
    """The step's own field that a dotted key lies in."""
    return key.split(".")[0]
