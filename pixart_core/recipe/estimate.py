"""What a step would cost, from its options and the cards of its inputs alone (for `--dry-run`)."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pixart_core.errors import UserError
from pixart_core.recipe.compbench import prompt_categories
from pixart_core.recipe.costs import total_cost, training_cost
from pixart_core.recipe.data import DataOptions, ShapesStep
from pixart_core.recipe.expected import expect
from pixart_core.recipe.feature_estimate import estimate_features
from pixart_core.recipe.features import ExtractFeaturesStep
from pixart_core.recipe.image_counts import count_images
from pixart_core.recipe.plan import resolve_sources
from pixart_core.recipe.planning import PlanOptions
from pixart_core.recipe.prompts import PromptOptions, has_options, read_prompt_file
from pixart_core.recipe.schema import Recipe, SampleStep
from pixart_core.recipe.training import TrainStep


def estimate(step: BaseModel) -> dict[str, Any]:
    """Counts that are cheap to know: images, updates, parameters, FLOPs; unknown ones are left out."""
    if isinstance(step, ShapesStep):
        return {"images": step.count + step.heldout}
    if isinstance(step, DataOptions):
        images, uncounted = count_images(str(step.data), step.limit)
        known: dict[str, Any] = {"images_unknown": uncounted} if uncounted else {}
        if isinstance(step, ExtractFeaturesStep):
            return known | estimate_features(step, images)
        return known if images is None else {"images": images}
    if isinstance(step, TrainStep):
        return estimate_training(step)
    if isinstance(step, SampleStep):
        return _sampling(step)
    return {}


def estimate_training(
    step: TrainStep,
    name: str = "",
    recipe: Recipe | None = None,
    root: Path = Path(),
    remade: Collection[str] = (),
) -> dict[str, Any]:
    """Counts and cost of a train step.

    Args:
        name, recipe: the step's, which tell the plan's hardware, and what an earlier step will make.
        root: folder of the recipe's outputs.
        remade: steps whose outputs there will be made again.
    """
    plan = recipe.plan if recipe is not None else PlanOptions.model_validate({})
    return training_cost(step, expect(step, plan.steps.get(name), recipe, root, remade), plan, name)


def estimate_recipe(
    recipe: Recipe, root: Path, remade: Collection[str] = ()
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(the estimate of each step, the sum over its train steps if there are several).

    Args:
        remade: steps whose outputs in `root` will be made again.
    """
    estimates = {}
    for name, step in recipe.steps.items():
        if isinstance(step, TrainStep):
            estimates[name] = estimate_training(step, name, recipe, root, remade)
        else:
            estimates[name] = estimate(resolve_sources(step, root))
    trained = [estimates[name] for name, step in recipe.steps.items() if isinstance(step, TrainStep)]
    return estimates, total_cost(trained, recipe.plan) if len(trained) > 1 else {}


def _sampling(step: SampleStep) -> dict[str, Any]:
    prompts = len(step.prompts)
    if step.prompts_file is not None and has_options(Path(str(step.prompts_file))):
        return _with_options(step, read_prompt_file(Path(str(step.prompts_file))))
    if step.prompts_file is not None:
        counted = _count_prompts(Path(str(step.prompts_file)))
        if counted is None:
            return {}
        prompts += counted
    prompts = min(prompts, step.limit or prompts)
    images = prompts * step.images_per_prompt
    return {"prompts": prompts, "images": images, "solver_steps": images * step.num_inference_steps}


def _with_options(step: SampleStep, listed: list[PromptOptions]) -> dict[str, Any]:
    """The same for prompts that have options of their own."""
    given = [PromptOptions(prompt=prompt) for prompt in step.prompts]
    prompts = [*given, *listed][: step.limit]
    images = [prompt.images_per_prompt or step.images_per_prompt for prompt in prompts]
    steps = [prompt.num_inference_steps or step.num_inference_steps for prompt in prompts]
    solver_steps = sum(count * each for count, each in zip(images, steps, strict=True))
    return {"prompts": len(prompts), "images": sum(images), "solver_steps": solver_steps}


def _count_prompts(path: Path) -> int | None:
    """Lines of text files, or held-out images of a manifest folder; None if it is not there yet.

    Raises:
        UserError: it cannot be read.
    """
    manifest = path / "manifest.jsonl"
    try:
        files = [path / f"{category}_val.txt" for category in prompt_categories(path)]
        if files or path.is_file():
            return sum(_count_lines(file) for file in files or [path])
        if not manifest.is_file():
            return None
        with manifest.open(encoding="utf-8") as lines:
            return sum(json.loads(line).get("split") == "heldout" for line in lines)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from error


def _count_lines(path: Path) -> int:
    return sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
