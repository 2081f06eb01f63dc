"""`pixart run`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pixart_cli.console import RichProgress, is_first_process, show, stdout_to_stderr
from pixart_cli.errors import user_errors
from pixart_cli.options import AsJson, DryRun, Output, with_examples
from pixart_cli.planner import Gpu, Mfu, Price, chain_plan_text, plan_overrides
from pixart_cli.runners import RUNNERS
from pixart_core.errors import ToldElsewhereError, UserError
from pixart_core.recipe.chain import check_root, run_chain
from pixart_core.recipe.estimate import estimate_recipe
from pixart_core.recipe.load import load_recipe
from pixart_core.recipe.needs import missing_inputs, refuse_missing
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
            estimates, total = estimate_recipe(loaded, root)
            steps = [step.as_json() | {"estimate": estimates[step.name]} for step in plan]
            shown = {"output": str(root), "steps": steps, "total": total, "missing": _missing(loaded, plan)}
            show(shown, as_json=as_json, as_text=chain_plan_text)
            return
        if any(missing_inputs(loaded, resolve_sources(step, root)) for step in loaded.steps.values()):
            plan = plan_chain(loaded, root, only=names, start_from=start_from, force=force)
            refuse_missing(_missing(loaded, plan))
        with stdout_to_stderr(), RichProgress() as progress:
            result = run_chain(
                loaded, root, RUNNERS, progress, only=names, start_from=start_from, force=force
            )
        if as_json:
            show(result.as_json(), as_json=True)
        else:
            typer.echo(summary(result.as_json()))


def _missing(recipe: Recipe, plan: Sequence[PlannedStep]) -> dict[str, str]:
    """Path and command of what the steps to be run need and no step makes."""
    made = {str(step.output) for step in plan}
    missing: dict[str, str] = {}
    for step in plan:
        if step.action in ("run", "continue"):
            missing |= missing_inputs(recipe, step.step)
    return {path: command for path, command in missing.items() if path not in made}


def summary(result: Mapping[str, Any]) -> str:
    """What a person wants to know at the end: scores, and where things are."""
    lines = []
    for samples, benches in result["metrics"].items():
        lines.append(samples)
        for bench, scores in benches.items():
            if "value" in scores:
                lines.append(f"  {bench:<12} {scores['value']:.3f}")
                continue
            for name, score in scores.items():
                gain = f"{score['exact_minus_null']:.3f} above its null"
                lines.append(f"  {name:<12} {score['score']:.3f}, {gain}")
    places = {key: result[key] for key in ("output", "pipeline", "report") if result[key]}
    return "\n".join([*lines, *(f"{key}: {place}" for key, place in places.items())])
