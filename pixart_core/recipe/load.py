"""From a YAML file and overrides to a checked recipe, with every mistake reported at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pixart_core.errors import UserError
from pixart_core.recipe.document import Document, dump_yaml, read_document
from pixart_core.recipe.find import find_recipe
from pixart_core.recipe.mistakes import Mistake, did_you_mean, dotted, explain
from pixart_core.recipe.overrides import Override, apply_overrides, locate_in_recipe, locate_in_step
from pixart_core.recipe.schema import FromStep, Recipe, source_fields

S = TypeVar("S", bound=BaseModel)


def load_recipe(source: str | Path, overrides: Sequence[str] = (), *, focus: str | None = None) -> Recipe:
    """Read a recipe (a path or a bundled name) and put `overrides` over it.

    Args:
        source: path, or name of a bundled recipe.
        overrides: `step.field=value`, also `command.field=value` where one step has that command.
        focus: step or command whose fields an override may name alone (`learning_rate=1e-4`).

    Raises:
        UserError: all mistakes, each as `file:line: step.field: message` or `override 'x=y': message`.
    """
    document = read_document(find_recipe(source))
    if not isinstance(document.data, dict):
        raise UserError(f"{document.label}: a recipe is a mapping with the keys name and steps")
    data, applied, wrong = apply_overrides(
        document.data, overrides, Recipe, locate_in_recipe(document.data, focus)
    )
    found = [(line, f"{dotted(path)}: key given twice") for line, path in document.duplicates]
    unnamed: list[str] = []
    references = _wrong_references(data)
    recipe, mistakes = _validate(data)
    for mistake in [*references, *(m for m in mistakes if m.path or not references)]:
        override = _override_of(mistake, applied)
        if override is None:
            found.append((document.line(mistake.path), _worded(mistake)))
        else:
            unnamed.append(f"override {override.text!r}: {_worded(mistake)}")
    lines = [f"{document.label}:{line}: {message}" for line, message in sorted(found)] + wrong + unnamed
    if lines:
        raise _all_at_once(lines, document)
    assert recipe is not None
    return recipe


def step_from_options(
    model: type[S], values: Mapping[str, Any], overrides: Sequence[str], flags: Mapping[str, str]
) -> S:
    """Read the options of a single command: values of its flags, then trailing `field=value`.

    Args:
        values: field and value; None means not given.
        flags: field and name of the flag it came from, for messages.

    Raises:
        UserError: all mistakes, each as `--flag: message` or `override 'x=y': message`.
    """
    given = {field: value for field, value in values.items() if value is not None}
    data, applied, lines = apply_overrides(given, overrides, model, locate_in_step)
    try:
        step = model.model_validate(data)
    except ValidationError as error:
        for mistake in explain(error, model, data):
            override = _override_of(mistake, applied)
            name = flags.get(str(mistake.path[0])) if mistake.path else None
            if override is not None:
                lines.append(f"override {override.text!r}: {_worded(mistake)}")
            else:
                # `--bench[1]`: the flag instead of the field, then what is inside it.
                inside = dotted(mistake.path).removeprefix(str(mistake.path[0])) if mistake.path else ""
                lines.append(f"{name}{inside}: {mistake.message}" if name else _worded(mistake))
    if lines:
        raise _all_at_once(lines, None)
    for field in source_fields(model):
        if isinstance(getattr(step, field), FromStep):
            raise UserError(f"{flags.get(field, field)}: {{step: ...}} has a meaning only inside a recipe")
    return step


def select_step(recipe: Recipe, model: type[S], name: str | None = None) -> tuple[str, S]:
    """The step called `name`, or the only one of that command: (its name, its options).

    Raises:
        UserError: no such step, or several and none was named.
    """
    command = str(model.model_fields["command"].default)
    fitting = {key: step for key, step in recipe.steps.items() if isinstance(step, model)}
    listed = ", ".join(fitting) or "none"
    if name is None and len(fitting) == 1:
        return next(iter(fitting.items()))
    if name is None:
        many = f"recipe {recipe.name} has {len(fitting)} {command} steps"
        raise UserError(f"{many}; choose one with --step: {listed}" if fitting else many)
    if name not in fitting:
        near = did_you_mean(name, fitting)
        raise UserError(f"recipe {recipe.name} has no {command} step {name!r}{near}; it has: {listed}")
    return name, fitting[name]


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML that `load_recipe` reads again."""
    return dump_yaml(recipe.model_dump(mode="json"))


def _validate(data: Any) -> tuple[Recipe | None, list[Mistake]]:
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, explain(error, Recipe, data)


def _wrong_references(data: Any) -> list[Mistake]:
    """`{step: NAME}` that is not an earlier step; found even when other mistakes hide it from pydantic."""
    mistakes: list[Mistake] = []
    steps = data.get("steps")
    seen: list[str] = []
    for name, step in steps.items() if isinstance(steps, dict) else ():
        for path, target in _references(step):
            if target not in seen:
                known = did_you_mean(target, seen) or f" (earlier steps: {', '.join(seen) or 'none'})"
                mistakes.append(
                    Mistake(("steps", name, *path), f"step {target!r} is not an earlier step{known}")
                )
        seen.append(str(name))
    return mistakes


def _references(step: Any) -> list[tuple[tuple[str, ...], str]]:
    """(keys, step name) of each `{step: NAME}` in a step's raw data: a field, or an entry of one."""
    found: list[tuple[tuple[str, ...], str]] = []
    for field, value in step.items() if isinstance(step, dict) else ():
        entries = value if isinstance(value, dict) else {}
        if list(entries) == ["step"] and isinstance(entries["step"], str):
            found.append(((field,), entries["step"]))
            continue
        for key, item in entries.items():
            if isinstance(item, dict) and list(item) == ["step"] and isinstance(item["step"], str):
                found.append(((field, key), item["step"]))
    return found


def _override_of(mistake: Mistake, applied: Sequence[Override]) -> Override | None:
    """The last override at or above the place of `mistake`."""
    fitting = [o for o in applied if mistake.path[: len(o.path)] == o.path]
    return fitting[-1] if fitting else None


def _worded(mistake: Mistake) -> str:
    where = dotted(mistake.path)
    return f"{where}: {mistake.message}" if where else mistake.message


def _all_at_once(lines: list[str], document: Document | None) -> UserError:
    if len(lines) == 1:
        return UserError(lines[0])
    where = f" in {document.label}" if document is not None else ""
    return UserError(f"{len(lines)} mistakes{where}:\n  " + "\n  ".join(lines))
