"""What to draw: prompts, each with its own seed, size and options."""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol, TypeVar

from pixart_core.artifacts.manifest import manifest_folder, read_manifest
from pixart_core.artifacts.samples import SampleRecord, image_file
from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.prompts import read_prompts
from pixart_core.recipe.compbench import Category, prompt_categories
from pixart_core.recipe.prompts import PromptOptions, read_prompt_file
from pixart_core.recipe.sample import SampleStep, check_steps
from pixart_core.sampling.sizes import Size
from pixart_core.seeding import derive_seed

Value = TypeVar("Value")


class Sizes(Protocol):
    """Chooses the (height, width) in pixels for what is asked; see `SizeChoice`."""

    def of_aspect(self, ar: str) -> Size: ...

    def of_size(self, height: int, width: int) -> Size: ...


def read_requests(step: SampleStep, default_size: Size, choice: Sizes | None = None) -> list[SampleRecord]:
    """The images that `step` asks for, in order: every prompt `images_per_prompt` times.

    The seed of an image derives from the step's seed and the image's number, unless its prompt
    has one or `image_seeds` tells it.

    Args:
        choice: of the sizes for `ar`, `height` and `width`; None if none are asked for.

    Raises:
        UserError: no prompt, two of one id, or a file that cannot be read.
    """
    prompts = [PromptOptions(prompt=prompt) for prompt in step.prompts]
    if step.prompts_file is not None:
        prompts += _from_file(Path(str(step.prompts_file)))
    prompts = prompts[: step.limit]
    if not prompts:
        raise UserError("nothing to draw: give a prompt, or --prompts with a text file or a manifest")
    common = _size(step, choice)
    sizes = (common,) if common else step.sizes or (default_size,)
    records: list[SampleRecord] = []
    for number, (id_, prompt) in enumerate(_with_ids(prompts)):
        size = _size(prompt, choice) or sizes[number % len(sizes)]
        for copy in range(_or(prompt.images_per_prompt, step.images_per_prompt)):
            records.append(_record(step, prompt, id_, len(records), copy, size))
    return records


def _size(asked: SampleStep | PromptOptions, choice: Sizes | None) -> Size | None:
    if asked.ar is not None:
        assert choice is not None
        return choice.of_aspect(asked.ar)
    if asked.height is None or asked.width is None:
        return None
    assert choice is not None
    return choice.of_size(asked.height, asked.width)


def _record(
    step: SampleStep, prompt: PromptOptions, id_: str, image: int, copy: int, size: Size
) -> SampleRecord:
    steps = _or(prompt.num_inference_steps, step.num_inference_steps)
    try:
        check_steps(step.scheduler, steps)
    except ValueError as error:
        raise UserError(f"{step.prompts_file}: prompt {id_}: {error}") from error
    if image < len(step.image_seeds):
        seed = step.image_seeds[image]
    elif prompt.seed is None:
        seed = derive_seed(step.seed, "image", image)
    else:
        seed = derive_seed(prompt.seed, "copy", copy) if copy else prompt.seed
    return SampleRecord(
        id=id_,
        file=image_file(image),
        prompt=prompt.prompt,
        seed=seed,
        height=size[0],
        width=size[1],
        meta=prompt.meta,
        negative_prompt=_or(prompt.negative_prompt, step.negative_prompt),
        guidance_scale=_or(prompt.guidance_scale, step.guidance_scale),
        num_inference_steps=steps,
    )


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def _with_ids(prompts: list[PromptOptions]) -> list[tuple[str, PromptOptions]]:
    """Prompts with their ids; those without one are numbered."""
    found: dict[str, PromptOptions] = {}
    for number, prompt in enumerate(prompts):
        id_ = f"{number:06d}" if prompt.id is None else prompt.id
        if id_ in found:
            raise UserError(f"two prompts have the id {id_!r}; prompts without one are numbered from 000000")
        found[id_] = prompt
    return list(found.items())


def _from_file(path: Path) -> list[PromptOptions]:
    if manifest_folder(path) is not None:
        heldout = read_manifest(path).split("heldout")
        found = [
            PromptOptions(prompt=record.caption, id=record.id, meta=record.meta)
            for record in heldout
            if record.caption
        ]
        if not found:
            raise UserError(f"{path} holds no held-out captions (see heldout_fraction)")
        return found
    if categories := prompt_categories(path):
        return _of_compbench(path, categories)
    return read_prompt_file(path)


def _of_compbench(folder: Path, categories: Collection[Category]) -> list[PromptOptions]:
    """The prompts of T2I-CompBench in `folder`."""
    return [
        PromptOptions(
            prompt=prompt.text,
            id=f"{prompt.category}-{prompt.index:03d}",
            meta={"category": prompt.category},
        )
        for prompts in read_prompts(str(folder), categories).values()
        for prompt in prompts
    ]
