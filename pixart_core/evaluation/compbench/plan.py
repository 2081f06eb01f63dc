"""T2I-CompBench with nothing else given: the newest checkpoint here, what is missing, what is to be drawn."""

import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import CARD, fingerprint, read_card
from pixart_core.artifacts.checkpoint import TRANSFORMER
from pixart_core.artifacts.publish import staged_folder
from pixart_core.artifacts.samples import IMAGES
from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.availability import Download, absent_parts
from pixart_core.evaluation.compbench.missing import Missing, prompts_are_missing
from pixart_core.evaluation.compbench.prompts import Prompt, read_prompts
from pixart_core.progress import Progress
from pixart_core.recipe.chain import Runner
from pixart_core.recipe.compbench import CompBenchOptions, prompt_categories
from pixart_core.recipe.schema import SampleStep

_TEXT_TO_IMAGE = "PixArtTransformer2DModel"
_MODELS = ("checkpoint", "pipeline")


@dataclasses.dataclass(frozen=True)
class CompBenchPlan:
    """What scoring the newest checkpoint takes.

    Attributes:
        checkpoint: that is sampled; `made` is when it was finished.
        samples: folder of its samples.
        prompts: what is drawn, by category; categories that lack a part are left out, unless images are
            wanted in the official layout.
        images: to be drawn in all; `there` are drawn already, `whole` would be drawn without a limit.
        missing: what is not here, and for which categories.
        downloads: what will be fetched from the hub first.
    """

    checkpoint: Path
    made: datetime.datetime
    samples: Path
    prompts: Mapping[str, Sequence[Prompt]]
    images_per_prompt: int
    there: int
    whole: int
    missing: tuple[Missing, ...]
    downloads: tuple[Download, ...]
    step: SampleStep

    @property
    def name(self) -> str:
        """Of the sample set, in reports."""
        return (
            self.checkpoint.name if self.checkpoint.parent == Path() else "-".join(self.checkpoint.parts[-2:])
        )

    @property
    def images(self) -> int:
        return self.images_per_prompt * sum(map(len, self.prompts.values()))

    def lines(self) -> list[str]:
        """For a person."""
        found = [f"newest checkpoint: {self.checkpoint} (finished {self.made:%Y-%m-%d %H:%M})"]
        counts = ", ".join(f"{category} {len(texts)}" for category, texts in self.prompts.items())
        todo = f"{self.images - self.there} of {self.images} images into {self.samples} ({counts})"
        found += [f"to draw: {todo if self.prompts else 'nothing, before what is missing is here'}"]
        found += [f"to download: {part.part} {part.source} ({part.size})" for part in self.downloads]
        return found + [
            f"missing: {part.part} ({part.size}), for {', '.join(part.categories)}. {part.fix}"
            for part in self.missing
        ]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "checkpoint": str(self.checkpoint),
            "samples": str(self.samples),
            "images": self.images,
            "images_there": self.there,
            "prompts": {category: len(texts) for category, texts in self.prompts.items()},
            "downloads": [dataclasses.asdict(part) for part in self.downloads],
            "missing": [part.as_json() for part in self.missing],
        }


def plan_compbench(
    options: CompBenchOptions,
    runs: Path,
    samples: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> CompBenchPlan:
    """Look at what is here; nothing is written, loaded or drawn.

    Args:
        runs: folder below which checkpoints are looked for.
        samples: folder that the samples get a sub-folder of.
        limit: draw about so many images in all, of all categories alike.

    Raises:
        UserError: no text-to-image checkpoint below `runs`.
    """
    checkpoint, made = newest_checkpoint(runs)
    missing, downloads = absent_parts(options)
    prompts, without = _prompts(options)
    missing = [*without, *missing]
    lacking = {category for part in missing for category in part.categories}
    if options.official_layout is None:
        prompts = {category: texts for category, texts in prompts.items() if category not in lacking}
    chosen = _limited(prompts, limit, options.images_per_prompt)
    folder = samples / _folder_name(checkpoint, chosen, options.images_per_prompt, seed)
    step = SampleStep.model_validate(
        {
            "checkpoint": str(checkpoint),
            "prompts_file": str(samples / f".{folder.name}-prompts"),
            "images_per_prompt": options.images_per_prompt,
            "seed": seed,
            "device": device,
        }
    )
    there = sum(1 for _ in (folder / IMAGES).glob("*.png"))
    return CompBenchPlan(
        checkpoint,
        made,
        folder,
        chosen,
        options.images_per_prompt,
        there,
        options.images_per_prompt * sum(map(len, prompts.values())),
        tuple(missing),
        tuple(downloads),
        step,
    )


def _prompts(options: CompBenchOptions) -> tuple[Mapping[str, Sequence[Prompt]], list[Missing]]:
    """(prompts by category, those that are not here).

    Raises:
        UserError: a file of prompts that cannot be read.
    """
    folder, wanted = Path(options.prompts).expanduser(), options.categories
    if not folder.is_dir():
        try:
            return read_prompts(options.prompts, wanted), []
        except UserError as error:
            return {}, [prompts_are_missing(wanted, str(error))]
    here = [category for category in wanted if category in prompt_categories(folder)]
    absent = [category for category in wanted if category not in here]
    files = ", ".join(f"{category}_val.txt" for category in absent)
    fix = f"{folder} has no {files}; it is to be the benchmark's examples/dataset, or a copy"
    return read_prompts(options.prompts, here), [prompts_are_missing(absent, fix)] if absent else []


def draw_planned(plan: CompBenchPlan, progress: Progress, draw: Runner | None = None) -> Path:
    """Draw what `plan` lacks; a killed run continues. Returns the sample set.

    Args:
        draw: runs a sample step; default: in this process.

    Raises:
        UserError: nothing can be scored; and as `pixart sample`.
    """
    if not plan.prompts:
        parts = "; ".join(part.part for part in plan.missing)
        raise UserError(
            f"no category of T2I-CompBench can be scored before what is missing is here: {parts} (`pixart "
            "evaluate --bench compbench --dry-run` says sizes and remedies)"
        )
    from pixart_core.sampling.sample import run_sampling

    _write_prompts(Path(str(plan.step.prompts_file)), plan.prompts)
    (draw or run_sampling)(plan.step, plan.samples, progress)
    return plan.samples


def newest_checkpoint(runs: Path) -> tuple[Path, datetime.datetime]:
    """The text-to-image checkpoint or pipeline below `runs` whose card is the newest, and its time.

    Raises:
        UserError: there is none.
    """
    found = sorted((time, folder) for folder, time in _finished_models(runs))
    if not found:
        raise UserError(
            f"no finished text-to-image checkpoint below {runs}/; train one, or give --samples (what pixart "
            "sample made) instead"
        )
    time, folder = found[-1]
    return folder, datetime.datetime.fromtimestamp(time)


def _finished_models(runs: Path) -> Iterator[tuple[Path, float]]:
    for path in runs.rglob(CARD):
        folder = path.parent
        if any(part.startswith(".") for part in folder.relative_to(runs).parts):
            continue  # moved aside, or in the making
        card = read_card(folder)
        if card is not None and card["kind"] in _MODELS and _is_text_to_image(folder):
            yield folder, path.stat().st_mtime


def _is_text_to_image(folder: Path) -> bool:
    try:
        config = json.loads((folder / TRANSFORMER / "config.json").read_text())
        return bool(config["_class_name"] == _TEXT_TO_IMAGE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _limited(
    prompts: Mapping[str, Sequence[Prompt]], limit: int | None, images_per_prompt: int
) -> dict[str, Sequence[Prompt]]:
    """The first prompts of each category, as many as make up `limit` images, but one at least."""
    if limit is None or not prompts:
        return dict(prompts)
    each = max(1, limit // (images_per_prompt * len(prompts)))
    return {category: texts[:each] for category, texts in prompts.items()}


def _folder_name(
    checkpoint: Path, prompts: Mapping[str, Sequence[Prompt]], images_per_prompt: int, seed: int
) -> str:
    """Changes with all that is drawn, so that no other samples are taken for these."""
    card = read_card(checkpoint)
    texts = {category: [prompt.text for prompt in found] for category, found in prompts.items()}
    what = [card["fingerprint"] if card else None, texts, images_per_prompt, seed]
    return f"compbench-{'-'.join(checkpoint.parts[-2:])}-{fingerprint(what)[:8]}"


def _write_prompts(folder: Path, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Once: what a run began with stays as it is, files' times included."""
    if folder.is_dir():
        return
    with staged_folder(folder) as staging:
        for category, texts in prompts.items():
            (staging / f"{category}_val.txt").write_text("".join(f"{prompt.text}\n" for prompt in texts))
