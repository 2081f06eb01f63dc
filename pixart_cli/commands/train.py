"""`pixart train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pixart_cli.errors import user_errors
from pixart_cli.execute import execute, output_of
from pixart_cli.options import AsJson, DryRun, Output, Seed, with_examples
from pixart_cli.outputs import name_of
from pixart_cli.planner import Gpu, Mfu, Price, plan_overrides, training_plan_text
from pixart_core.artifacts.card import read_card
from pixart_core.errors import UserError
from pixart_core.recipe.estimate import estimate_training
from pixart_core.recipe.load import load_recipe, select_step
from pixart_core.recipe.needs import missing_inputs, refuse_missing
from pixart_core.recipe.plan import resolve_sources
from pixart_core.recipe.records import CHAIN
from pixart_core.recipe.schema import Recipe, TrainStep, step_references


@with_examples(
    "pixart train --recipe own_images",
    "pixart train --recipe own_images.yaml --output runs/x train.learning_rate=1.0e-3",
    "pixart train --recipe quickstart --step stage2 --max-train-steps 500 optimizer.kind=adamw",
    "pixart train --recipe own_images --verify-resume",
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
    processes: Annotated[
        int | None, typer.Option(help="Processes on this machine; default: one a GPU.", show_default=False)
    ] = None,
    seed: Seed = None,
    gpu: Gpu = None,
    mfu: Mfu = None,
    price: Price = None,
    verify_resume: Annotated[
        bool,
        typer.Option(
            "--verify-resume",
            help="Instead of training, prove that this recipe on this machine, killed and continued, ends "
            "bit-identical; writes resume_certificate.json.",
        ),
    ] = False,
    verify_steps: Annotated[
        int | None, typer.Option(help="Updates of the proof; default 8.", show_default=False)
    ] = None,
    verify_kills: Annotated[
        int | None, typer.Option(help="Kills of the proof; default 4.", show_default=False)
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Train one stage of a recipe."""
    with user_errors():
        if not verify_resume and (verify_steps, verify_kills) != (None, None):
            raise UserError("--verify-steps and --verify-kills go with --verify-resume")
        given = {
            "max_train_steps": max_train_steps,
            "global_batch_size": global_batch_size,
            "micro_batch_size": micro_batch_size,
            "learning_rate": learning_rate,
            "processes": processes,
            "seed": seed,
        }
        focus = step or "train"
        changes = [f"{focus}.{field}={value}" for field, value in given.items() if value is not None]
        changes += plan_overrides(gpu, mfu, price)
        loaded = load_recipe(recipe, [*(overrides or []), *changes], focus=focus)
        name, chosen = select_step(loaded, TrainStep, step)
        if chosen.price is None:
            chosen = chosen.model_copy(update={"price": loaded.plan.price})
        root = Path(loaded.output or f"runs/{loaded.name}")
        resolved = resolve_sources(chosen, root)
        missing = _missing(loaded, recipe, chosen, root)
        planned: dict[str, Any] | None = None
        if dry_run:
            planned = {"estimate": estimate_training(chosen, name, loaded, root), "missing": missing}
        else:
            refuse_missing(missing)
        if verify_resume:
            from pixart_cli.verify_resume import verify_resume as verify

            place = output_of("train", resolved, output, _run_name(loaded, name))
            counts = {"steps": verify_steps or 8, "kills": verify_kills or 4}
            verify(resolved, place, **counts, as_json=as_json, dry_run=dry_run)
            return
        execute(
            "train",
            resolved,
            output,
            _run_name(loaded, name),
            as_json=as_json,
            dry_run=dry_run,
            planned=planned,
            as_text=training_plan_text,
        )


def _missing(recipe: Recipe, source: str, step: TrainStep, root: Path) -> dict[str, str]:
    """Path and command of what `step` needs and is not there: outputs of earlier steps, and other inputs."""
    outputs = {str(root / target): target for _, target in step_references(step)}
    missing = {
        path: f"pixart run {source} --only {target}"
        for path, target in outputs.items()
        if read_card(Path(path)) is None
    }
    others = missing_inputs(recipe, resolve_sources(step, root))
    return missing | {path: command for path, command in others.items() if path not in outputs}


def _run_name(recipe: Recipe, step: str) -> str:
    """The recipe's name, with the step's if there are others or `pixart run` has that folder."""
    taken = (Path("runs") / recipe.name / CHAIN).is_dir()
    return name_of(f"{recipe.name}-{step}" if taken or len(recipe.steps) > 1 else recipe.name)
