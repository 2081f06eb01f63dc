"""What to draw: prompts, each with its own seed and size."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pixart_core.artifacts.manifest import manifest_folder, read_manifest
from pixart_core.artifacts.samples import SampleRecord, image_file
from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.prompts import read_prompts
from pixart_core.recipe.compbench import Category, prompt_categories
from pixart_core.recipe.schema import SampleStep
from pixart_core.seeding import derive_seed


def read_requests(step: SampleStep, default_size: tuple[int, int]) -> list[SampleRecord]:
    """The images that `step` asks for, in order: every prompt `images_per_prompt` times.

    The seed of an image derives from the step's seed and the image's number.

    Raises:
        UserError: no prompt, or a file that cannot be read.
    """
    prompts: list[tuple[str, str, dict[str, Any]]] = [
        (f"{number:06d}", prompt, {}) for number, prompt in enumerate(step.prompts)
    ]
    if step.prompts_file is not None:
        prompts += _from_file(Path(str(step.prompts_file)), len(prompts))
    prompts = prompts[: step.limit]
    if not prompts:
        raise UserError("nothing to draw: give a prompt, or --prompts with a text file or a manifest")
    sizes = step.sizes or (default_size,)
    records: list[SampleRecord] = []
    for number, (id_, prompt, meta) in enumerate(prompts):
        height, width = sizes[number % len(sizes)]
        for _ in range(step.images_per_prompt):
            image = len(records)
            seed = derive_seed(step.seed, "image", image)
            records.append(SampleRecord(id_, image_file(image), prompt, seed, height, width, meta))
    return records


def _from_file(path: Path, offset: int) -> list[tuple[str, str, dict[str, Any]]]:
    if manifest_folder(path) is not None:
        heldout = read_manifest(path).split("heldout")
        found = [(record.id, record.caption, record.meta) for record in heldout if record.caption]
        if not found:
            raise UserError(f"{path} holds no held-out captions (see heldout_fraction)")
        return found
    if categories := prompt_categories(path):
        return _of_compbench(path, categories)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from error
    kept = [line.strip() for line in lines if line.strip()]
    if not kept:
        raise UserError(f"{path} holds no prompts")
    return [(f"{offset + number:06d}", prompt, {}) for number, prompt in enumerate(kept)]


def _of_compbench(folder: Path, categories: Collection[Category]) -> list[tuple[str, str, dict[str, Any]]]:
    """The prompts of T2I-CompBench in `folder`."""
    return [
        (f"{prompt.category}-{prompt.index:03d}", prompt.text, {"category": prompt.category})
        for prompts in read_prompts(str(folder), categories).values()
        for prompt in prompts
    ]
