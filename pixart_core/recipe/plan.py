"""What a chain would do: which steps are done, which would run, and why."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from pixart_core import __version__
from pixart_core.artifacts.card import fingerprint, fingerprint_input, read_card, split_sources
from pixart_core.errors import UserError
from pixart_core.recipe.evaluate import EvaluateStep
from pixart_core.recipe.mistakes import did_you_mean
from pixart_core.recipe.records import Record, Records
from pixart_core.recipe.schema import FromStep, Recipe, step_references

S = TypeVar("S", bound=BaseModel)
Action = Literal["run", "continue", "done", "skip"]


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One step of a plan.

    Attributes:
        name, command: of the step.
        step: its options, with every `{step: NAME}` replaced by a folder.
        output: its folder.
        action: `run`, `continue` (an unfinished run of the same work), `done`, or `skip` (not chosen).
        reason: why, for a person.
        record: what would be recorded; `record.fingerprint` decides whether it is done.
    """

    name: str
    command: str
    step: BaseModel
    output: Path
    action: Action
    reason: str
    record: Record

    def as_json(self) -> dict[str, Any]:
        """Name, command, action, reason, output, fingerprint and options as plain data."""
        return {
            "name": self.name,
            "command": self.command,
            "action": self.action,
            "reason": self.reason,
            "output": str(self.output),
            "fingerprint": self.record.fingerprint,
            "options": self.step.model_dump(mode="json", exclude={"command"}),
        }


def plan_chain(
    recipe: Recipe,
    root: Path,
    *,
    only: Collection[str] = (),
    start_from: str | None = None,
    force: bool = False,
) -> list[PlannedStep]:
    """Decide for each step whether it is done; reads fingerprints and writes nothing.

    A report does without the curves of a stage that is neither chosen nor done.

    Args:
        only: run these steps alone; what they need must be done.
        start_from: run this step and those after it; what they need from before must be done.
        force: run the chosen steps even if they are done.

    Raises:
        UserError: an unknown step name, or a chosen step needs one that is neither chosen nor done.
    """
    chosen = _chosen(recipe, only, start_from)
    records = Records(root)
    planned: dict[str, PlannedStep] = {}
    for name, whole in recipe.steps.items():
        step, curveless = _without_undone_curves(whole, planned)
        resolved = resolve_sources(step, root)
        record = _expected(name, step, resolved, planned)
        action, reason = _state(records, root / name, name, record, step.rounding)
        if name not in chosen:
            reason = reason if action == "done" else f"not chosen; {reason}"
            action = "done" if action == "done" else "skip"
        elif action == "done" and force:
            action, reason = "run", "forced"
        if curveless and action in ("run", "continue"):
            reason += f"; without the curve of {', '.join(curveless)}, not done"
        _inputs_are_there(name, step, action, planned)
        planned[name] = PlannedStep(name, step.command, resolved, root / name, action, reason, record)
    return list(planned.values())


def resolve_sources(step: S, root: Path) -> S:
    """`step` with each `{step: NAME}` replaced by the folder `root/NAME`, as text."""

    def resolve(value: Any) -> Any:
        if isinstance(value, FromStep):
            return str(root / value.step)
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        return resolve_sources(value, root) if isinstance(value, BaseModel) else value

    fields = {name: resolve(getattr(step, name)) for name in type(step).model_fields}
    return step.model_copy(update=fields)


def _chosen(recipe: Recipe, only: Collection[str], start_from: str | None) -> set[str]:
    names = list(recipe.steps)
    for name in [*only, *([start_from] if start_from else [])]:
        if name not in names:
            listed = did_you_mean(name, names) or f"; steps: {', '.join(names)}"
            raise UserError(f"recipe {recipe.name} has no step {name!r}{listed}")
    chosen = set(names[names.index(start_from) :] if start_from else names)
    return chosen & set(only) if only else chosen


def _expected(name: str, step: BaseModel, resolved: BaseModel, planned: Mapping[str, PlannedStep]) -> Record:
    """What is recorded when `step` is done: an input from another step counts by that step's fingerprint."""
    options, sources = split_sources(resolved)
    upstream = dict(step_references(step))
    inputs = {
        field: planned[upstream[field]].record.fingerprint if field in upstream else fingerprint_input(source)
        for field, source in sources.items()
    }
    command = options.pop("command")
    decisive = {"command": command, "options": options, "inputs": inputs, "version": __version__}
    return Record(fingerprint(decisive), command, options, inputs, __version__)


def _state(
    records: Records, output: Path, name: str, expected: Record, rounding: Collection[str]
) -> tuple[Action, str]:
    done, started = records.done(name), records.started(name)
    if done is not None and done.fingerprint == expected.fingerprint:
        card = read_card(output)
        if card is None:
            return "run", f"{output} is missing or incomplete"
        if card["fingerprint"] != done.card:
            return "run", f"{output} was changed since"
        return "done", f"done in {done.seconds:.1f} s"
    if started is not None and started.fingerprint == expected.fingerprint:
        return "continue", "was interrupted; continues"
    if started is not None and _without(started, rounding) == _without(expected, rounding):
        return "continue", f"was interrupted; continues ({_difference(started, expected)})"
    previous = done or started
    if previous is None:
        return "run", "not made yet"
    return "run", f"stale: {_difference(previous, expected)}"


def _without(record: Record, fields: Collection[str]) -> tuple[Any, ...]:
    """What decides the output, but for the options named `fields`."""
    options = {field: value for field, value in record.options.items() if field not in fields}
    return record.command, options, record.inputs, record.version


def _difference(previous: Record, expected: Record) -> str:
    """Which input, option or version changed."""
    changes: list[str] = []
    if previous.command != expected.command:
        changes.append(f"command was {previous.command}")
    if previous.version != expected.version:
        changes.append(f"made by pixart {previous.version}, this is {expected.version}")
    for field in sorted({*previous.inputs, *expected.inputs}):
        if previous.inputs.get(field) != expected.inputs.get(field):
            changes.append(f"input {field} changed")
    old, new = flat(previous.options), flat(expected.options)
    for field in sorted({*old, *new}):
        if old.get(field) != new.get(field):
            changes.append(f"{field} was {old.get(field)}, is {new.get(field)}")
    return "; ".join(changes) or "made by another version of the chain"


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _without_undone_curves(step: S, planned: Mapping[str, PlannedStep]) -> tuple[S, list[str]]:
    """`step` without those of its `runs` that are skipped, and their steps: scores do not need them."""
    if not isinstance(step, EvaluateStep):
        return step, []
    undone = [
        source.step
        for source in step.runs.values()
        if isinstance(source, FromStep) and planned[source.step].action == "skip"
    ]
    kept = {
        name: source
        for name, source in step.runs.items()
        if not (isinstance(source, FromStep) and source.step in undone)
    }
    return step.model_copy(update={"runs": kept}), undone


def _inputs_are_there(name: str, step: BaseModel, action: Action, planned: Mapping[str, PlannedStep]) -> None:
    if action not in ("run", "continue"):
        return
    for field, target in step_references(step):
        if planned[target].action == "skip":
            why = planned[target].reason.removeprefix("not chosen; ")
            raise UserError(
                f"step {name} needs {target} (its {field}), which is not done ({why}); "
                f"run {target} first, or choose it too"
            )
