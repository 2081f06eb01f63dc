"""`pixart run`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from pixart_cli.console import RichProgress, is_first_process, show, stdout_to_stderr
from pixart_cli.errors import user_errors
from pixart_cli.options import AsJson, DryRun, Output, with_examples
from pixart_cli.planner import Gpu, Mfu, Price, chain_plan_text, plan_overrides
from pixart_cli.runners import RUNNERS
from pixart_cli.scores import scores_in_words
from pixart_core.errors import ToldElsewhereError, UserError
from pixart_core.recipe.chain import check_root, run_chain
from pixart_core.recipe.estimate import estimate_recipe
from pixart_core.recipe.load import load_recipe
from pixart_core.recipe.needs import missing_inputs, refuse_missing, wrong_paths
from pixart_core.recipe.plan import PlannedStep, plan_chain, resolve_sources
from pixart_core.recipe.schema import Recipe


@with_examples(
    "pixart run quickstart",
    "pixart run quickstart --dry-run",
    "pixart run quickstart --output runs/try stage2.max_train_steps=500 stage2.optimizer.kind=adamw",
    "pixart run quickstart --from stage2",
    "pixart run quickstart --only report --force --json",
)
def run(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or a bundled recipe's name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="STEP.FIELD=VALUE", help="Changes to the recipe.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run these steps alone (repeat, or separate by commas).")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Run this step and those after it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the chosen steps even if done.")] = False,
    gpu: Gpu = None,
    mfu: Mfu = None,
    price: Price = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Run all steps of a recipe.

    Steps that are done are skipped, an interrupted one goes on.
    """
    with user_errors():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if not is_first_process():
                raise ToldElsewhereError(2)
            raise UserError(
                "pixart run starts the processes of its steps itself: run it without torchrun, and let "
                "`STEP.processes=N` say how many"
            )
        loaded = load_recipe(recipe, [*(overrides or []), *plan_overrides(gpu, mfu, price)])
        root = output or Path(loaded.output or f"runs/{loaded.name}")
        names = [name.strip() for entry in only or [] for name in entry.split(",") if name.strip()]
        if dry_run:
            check_root(root)
            plan = plan_chain(loaded, root, only=names, start_from=start_from, force=force)
            remade = [step.name for step in plan if step.action == "run"]
            estimates, total = estimate_recipe(loaded, root, remade)
            steps = [step.as_json() | {"estimate": estimates[step.name]} for step in plan]
            shown = {
                "output": str(root),
                "steps": steps,
                "total": total,
                "missing": _missing(loaded, plan, root),
            }
            show(shown, as_json=as_json, as_text=chain_plan_text)
            return
        if any(
            _missing_of(loaded, name, resolve_sources(step, root), root)
            for name, step in loaded.steps.items()
        ):
            plan = plan_chain(loaded, root, only=names, start_from=start_from, force=force)
            refuse_missing(_missing(loaded, plan, root))
        with stdout_to_stderr(), RichProgress() as progress:
            result = run_chain(
                loaded, root, RUNNERS, progress, only=names, start_from=start_from, force=force
            )
        if as_json:
            show(result.as_json(), as_json=True)
        else:
            typer.echo(summary(result.as_json()))


def _missing(recipe: Recipe, plan: Sequence[PlannedStep], root: Path) -> dict[str, str]:
    """Path and origin of what the steps to be run need and no step makes."""
    missing: dict[str, str] = {}
    for step in plan:
        if step.action in ("run", "continue"):
            missing |= _missing_of(recipe, step.name, step.step, root)
    return missing


def _missing_of(recipe: Recipe, name: str, step: BaseModel, root: Path) -> dict[str, str]:
    """What the step `name` (its sources resolved) needs, does not find, and no step of the recipe makes."""
    made = [root / other for other in recipe.steps]
    missing = wrong_paths(name, step) | missing_inputs(recipe, step)
    return {
        path: origin
        for path, origin in missing.items()
        if not any(Path(path).is_relative_to(output) for output in made)
    }


def summary(result: Mapping[str, Any]) -> str:
    """What a person wants to know at the end: scores, and where things are."""
    lines = scores_in_words(result["metrics"])
    places = [(key, result[key]) for key in ("output", "pipeline") if result[key]]
    pages = [step.get("result", {}).get("report") for step in result["steps"].values()]
    places += [("report", page) for page in pages if page]
    return "\n".join([*lines, *(f"{key}: {place}" for key, place in places)])
