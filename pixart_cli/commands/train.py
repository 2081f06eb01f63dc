"""`pixart train`."""

from pathlib import Path
from typing import Annotated

import typer

from pixart_cli.errors import user_errors
from pixart_cli.execute import execute
from pixart_cli.options import AsJson, DryRun, Output, Seed, with_examples
from pixart_cli.outputs import name_of
from pixart_core.artifacts.card import read_card
from pixart_core.errors import UserError
from pixart_core.recipe.load import load_recipe, select_step
from pixart_core.recipe.plan import resolve_sources
from pixart_core.recipe.records import CHAIN
from pixart_core.recipe.schema import Recipe, TrainStep, step_references


@with_examples(
    "pixart train --recipe own_images",
    "pixart train --recipe own_images.yaml --output runs/x train.learning_rate=1.0e-3",
    "pixart train --recipe quickstart --step stage2 --max-train-steps 500 optimizer.kind=adamw",
    fields_of=TrainStep,
)
def train(
    recipe: Annotated[str, typer.Option(help="Recipe file with a train step, or a bundled recipe's name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STEP.FIELD=VALUE",
            help="Changes to the recipe; see below.",
            show_default=False,
        ),
    ] = None,
    step: Annotated[str | None, typer.Option(help="Which train step, if the recipe has several.")] = None,
    max_train_steps: Annotated[int | None, typer.Option(help="Updates.", show_default=False)] = None,
    global_batch_size: Annotated[
        int | None, typer.Option(help="Images an update.", show_default=False)
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Images at a time on a device.", show_default=False)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak.", show_default=False)] = None,
    seed: Seed = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Train one stage of a recipe."""
    with user_errors():
        given = {
            "max_train_steps": max_train_steps,
            "global_batch_size": global_batch_size,
            "micro_batch_size": micro_batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
        }
        focus = step or "train"
        changes = [f"{focus}.{field}={value}" for field, value in given.items() if value is not None]
        loaded = load_recipe(recipe, [*(overrides or []), *changes], focus=focus)
        name, chosen = select_step(loaded, TrainStep, step)
        resolved = _with_inputs(loaded, recipe, chosen)
        execute("train", resolved, output, _run_name(loaded, name), as_json=as_json, dry_run=dry_run)


def _with_inputs(recipe: Recipe, source: str, step: TrainStep) -> TrainStep:
    """`step` with `{step: X}` replaced by what `pixart run` made.

    Raises:
        UserError: it is not there yet; names the command that makes it.
    """
    root = Path(recipe.output or f"runs/{recipe.name}")
    for field, target in step_references(step):
        if read_card(root / target) is None:
            raise UserError(
                f"{field} needs step {target}, but {root / target} is missing or unfinished; "
                f"make it with: pixart run {source} --only {target}"
            )
    resolved = resolve_sources(step, root)
    assert isinstance(resolved, TrainStep)
    return resolved


def _run_name(recipe: Recipe, step: str) -> str:
    """The recipe's name, with the step's if there are others or `pixart run` has that folder."""
    taken = (Path("runs") / recipe.name / CHAIN).is_dir()
    return name_of(f"{recipe.name}-{step}" if taken or len(recipe.steps) > 1 else recipe.name)
