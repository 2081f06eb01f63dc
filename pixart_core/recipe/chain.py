"""Run the steps of a recipe in order; skip what is done, continue what was interrupted."""

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import read_card
from pixart_core.artifacts.publish import check_writable, write_text
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Progress
from pixart_core.recipe.load import dump_recipe
from pixart_core.recipe.plan import PlannedStep, plan_chain
from pixart_core.recipe.records import CHAIN, Records, locked, move_aside
from pixart_core.recipe.schema import Recipe

Runner = Callable[[Any, Path, Progress], dict[str, Any]]
"""(options with resolved sources, output folder, progress) -> a small result for JSON."""


@dataclasses.dataclass(frozen=True)
class ChainResult:
    """What a chain made.

    Attributes:
        output: the chain's folder.
        steps: for each step its action (`ran`, `done`, `skip`), seconds, output and result.
        metrics: of the evaluate steps that are done; of one sample set, those of all benchmarks together.
        report: report.html of the last one, or None.
        pipeline: the folder of the last `convert` to diffusers, or None.
    """

    output: Path
    steps: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any]
    report: Path | None
    pipeline: Path | None

    def as_json(self) -> dict[str, Any]:
        """The object that `pixart run --json` prints."""
        return {
            "output": str(self.output),
            "report": None if self.report is None else str(self.report),
            "pipeline": None if self.pipeline is None else str(self.pipeline),
            "metrics": dict(self.metrics),
            "steps": {name: dict(step) for name, step in self.steps.items()},
        }


def run_chain(
    recipe: Recipe,
    root: Path,
    runners: Mapping[str, Runner],
    progress: Progress,
    *,
    only: Collection[str] = (),
    start_from: str | None = None,
    force: bool = False,
) -> ChainResult:
    """Run `recipe` in `root`: one folder a step, the resolved recipe beside them.

    Killed at any point and run again it goes on where it was. Output made by other options is moved
    to `root/.stale`, never deleted.

    Args:
        runners: for each command the function that does it.
        only, start_from, force: as in `plan_chain`.

    Raises:
        UserError: `root` is in use, or holds something else; or what a step raised, with its name.
    """
    check_root(root)
    if not (root / CHAIN).is_dir():
        # A mistake in what was asked must not leave a folder behind.
        plan_chain(recipe, root, only=only, start_from=start_from, force=force)
    with locked(root):
        plan = plan_chain(recipe, root, only=only, start_from=start_from, force=force)
        write_text(root / "recipe.yaml", dump_recipe(recipe))
        ran: set[str] = set()
        for number, planned in enumerate(plan, start=1):
            title = f"[{number}/{len(plan)}] {planned.name} ({planned.command})"
            progress.say(f"{title}: {planned.reason}")
            if planned.action in ("run", "continue"):
                seconds = _run_step(planned, root, runners[planned.command], progress)
                progress.say(f"{title}: finished in {seconds:.1f} s")
                ran.add(planned.name)
        return _result(root, plan, ran)


def check_root(root: Path) -> None:
    """Refuse a folder that is something other than a chain's.

    Raises:
        UserError: it is a file, an artifact of a single command, holds other files, or cannot be made.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; choose another output folder")
    card = read_card(root)
    if card is not None:
        raise UserError(f"{root} holds {card['kind']}; a chain needs a folder of its own: choose another")
    if root.is_dir() and not (root / CHAIN).is_dir() and any(root.iterdir()):
        raise UserError(f"{root} is not empty and was not made by pixart run; choose another output folder")
    check_writable(root)


def _run_step(planned: PlannedStep, root: Path, runner: Runner, progress: Progress) -> float:
    records = Records(root)
    if planned.action == "run" and planned.output.exists():
        previous = records.done(planned.name) or records.started(planned.name)
        moved = move_aside(root, planned.name, previous.fingerprint if previous else None)
        progress.say(f"{planned.name}: earlier output moved to {moved}")
    records.write_started(planned.name, planned.record)
    begin = time.monotonic()
    try:
        result = json.loads(json.dumps(runner(planned.step, planned.output, progress), default=str))
    except PixartError as error:
        raise type(error)(f"step {planned.name}: {error}") from error
    seconds = time.monotonic() - begin
    card = read_card(planned.output)
    if card is None:
        raise PixartError(f"step {planned.name} ended without writing {planned.output}/card.json")
    done = dataclasses.replace(planned.record, card=card["fingerprint"], result=result, seconds=seconds)
    records.write_done(planned.name, done)
    return seconds


def _result(root: Path, plan: list[PlannedStep], ran: set[str]) -> ChainResult:
    records = Records(root)
    steps: dict[str, dict[str, Any]] = {}
    metrics: dict[str, Any] = {}
    report: Path | None = None
    pipeline: Path | None = None
    for planned in plan:
        name, action = planned.name, "ran" if planned.name in ran else planned.action
        entry: dict[str, Any] = {"action": action, "output": str(planned.output)}
        record = records.done(name) if action != "skip" else None
        if record is not None:
            entry |= {"seconds": round(record.seconds, 3), "result": record.result}
            if planned.command == "evaluate":
                page = planned.output / "report.html"
                metrics = _with(metrics, record.result.get("metrics", {}))
                report = page if page.exists() else None
            if planned.command == "convert" and record.options.get("to") == "diffusers":
                pipeline = planned.output
        steps[name] = entry
    return ChainResult(root, steps, metrics, report, pipeline)


def _with(metrics: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """What several evaluate steps found of each sample set; where two tell the same, the later one counts."""
    sets = {
        name: metrics[name] | found
        for name, found in more.items()
        if name in metrics and isinstance(found, dict)
    }
    return {**metrics, **more, **sets}
