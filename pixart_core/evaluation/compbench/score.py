"""T2I-CompBench on a sample set: every category beside its null, and what is missing."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pixart_core.encoders.device import choose_device
from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.compbench.layout import (
    PromptImages,
    export_official_layout,
    images_of_prompts,
    read_any_samples,
)
from pixart_core.evaluation.compbench.missing import (
    NEEDS_BLIP,
    NEEDS_BOXES,
    NEEDS_CLIP,
    NEEDS_DEPTH,
    NEEDS_READER,
    Missing,
    images_are_missing,
    refuse_wrong_paths,
    unnamed_parts,
)
from pixart_core.evaluation.compbench.object_scores import check_dumps
from pixart_core.evaluation.compbench.parts import PartIsMissingError, Parts
from pixart_core.evaluation.compbench.prompts import Prompt, read_prompts
from pixart_core.evaluation.compbench.scorers import Scorer, scorer_of
from pixart_core.evaluation.compbench.summary import summarise
from pixart_core.evaluation.compbench.work import Asker, Work, score_items
from pixart_core.evaluation.pictures import look, sampled_pictures
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.launch import Processes
from pixart_core.progress import Progress
from pixart_core.recipe.compbench import CompBenchOptions


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The categories of a sample set that can be scored, once their images were looked at.

    Attributes:
        scorers: of each category with its images.
        missing: what could not be scored, and what it takes, as JSON.
    """

    scorers: Mapping[str, tuple[Work, Scorer]]
    missing: Sequence[Mapping[str, Any]]
    images_per_prompt: int

    @property
    def askers(self) -> list[Asker]:
        """Who must look at the images first."""
        return [asker for _, scorer in self.scorers.values() for asker in scorer.askers]

    def result(self) -> dict[str, Any]:
        """
        Returns:
            "categories": {category: {"protocol": id, "comparable": whether published numbers are of it,
                "score": mean over images, "ci95": [low, high] over prompts, "n": images, "n_prompts",
                "null": the same images against other prompts, "score_minus_null", "score_minus_null_ci95",
                "ceiling": best score that the rules allow, or None, "partial": not all prompts and images,
                "prompts": [{"prompt", "score", "null", "images": [{"file", "score", "reasons"}]}]}}; with
                one prompt there are no intervals and no null: None.
            "missing": [{"part", "categories", "size", "fix"}].
        """
        categories = {
            category: summarise(
                work.images,
                work.grouped(score_items(work, scorer.score)),
                scorer.protocol,
                ceiling=_mean_ceiling(work, scorer),
                partial=_is_partial(work, self.images_per_prompt),
            )
            for category, (work, scorer) in self.scorers.items()
        }
        return {"categories": categories, "missing": [dict(part) for part in self.missing]}


def open_compbench(
    samples: SampleSet,
    options: CompBenchOptions,
    parts: Parts,
    caches: Caches,
    progress: Progress,
    *,
    seed: int = 0,
    first: bool = True,
) -> Scoring:
    """Load what the categories of `samples` need, and say what is missing; no image is read yet.

    Args:
        seed: of the shuffled prompts of the null.
        first: of the processes: exports images, where that is asked for, and speaks.

    Raises:
        UserError: an option names what is not there, or no sample has a prompt of the benchmark.
    """
    refuse_wrong_paths(options)
    prompts = read_prompts(options.prompts, options.categories)
    images = images_of_prompts(samples, prompts)
    if options.official_layout is not None and first:
        _export(samples, images, Path(options.official_layout).expanduser(), progress)
    ready = _ready(parts, tuple(images))
    missing = [part.as_json() for part in _missing(parts, options, images)]
    for part in missing if first else ():
        progress.say(
            f"compbench: {', '.join(part['categories'])}: no {part['part']} ({part['size']}). {part['fix']}"
        )
    works = _works(samples, prompts, images, ready, parts, seed)
    scorers = {name: (work, scorer_of(work, parts, options, caches)) for name, work in works.items()}
    return Scoring(scorers, missing, options.images_per_prompt)


def score_compbench(
    samples: SampleSet,
    options: CompBenchOptions,
    cache: Path,
    progress: Progress,
    *,
    device: torch.device | None = None,
    batch_size: int = 16,
    seed: int = 0,
    processes: Processes = Processes(),
) -> dict[str, Any] | None:
    """Score `samples` in every category that has prompts among them and weights at hand.

    Args:
        cache: folder of scores by image, to which this adds; a killed run continues from it.
        device: default: the best there is.
        batch_size: images at a time.

    Returns:
        As `Scoring.result`; None in a process that is not the first.

    Raises:
        UserError: as `open_compbench`; an image is gone or damaged.
        PixartError: the disk is full; what is cached is kept.
    """
    parts = Parts(options, options.categories, device or choose_device(None), batch_size)
    scoring = open_compbench(
        samples, options, parts, Caches(cache), progress, seed=seed, first=processes.first
    )
    look(sampled_pictures(samples), scoring.askers, batch_size, progress, processes)
    return scoring.result() if processes.first else None


def _works(
    samples: SampleSet,
    prompts: Mapping[str, Sequence[Prompt]],
    images: Mapping[str, Sequence[PromptImages]],
    categories: Sequence[str],
    parts: Parts,
    seed: int,
) -> dict[str, Work]:
    """What the scorers work on; dumps of the official code are looked through first."""
    # Official names count all images, also those that a limit leaves out.
    whole = (
        images_of_prompts(read_any_samples(samples.name, samples.folder), prompts)
        if samples.partial
        else images
    )
    works = {}
    for category in categories:
        files = [sample.file for entry in whole[category] for sample in entry.samples]
        official = {file: index for index, file in enumerate(files)}
        works[category] = Work.of(samples, images[category], prompts[category], seed, official)
        if category in NEEDS_BOXES:
            check_dumps(works[category], parts.boxes, parts.depth if category in NEEDS_DEPTH else None)
    return works


def _missing(parts: Parts, options: CompBenchOptions, images: Collection[str]) -> list[Missing]:
    """Parts, also those of categories that have no images yet; then the images that alone are missing."""
    unnamed = unnamed_parts(options)
    found = unnamed + [part for name, part in parts.missing.items() if name not in parts.unnamed]
    lacking = {category for part in unnamed for category in part.categories}
    absent = [name for name in options.categories if name not in images and name not in lacking]
    return found + ([images_are_missing(absent)] if absent else [])


def _ready(parts: Parts, categories: Sequence[str]) -> list[str]:
    """The categories that everything is here for; the rest is in `parts.missing` then.

    All is loaded before anything is scored: what is missing shall be known at once, and nothing be computed
    that another part turns out to be missing for.
    """
    needs = {
        "reader": NEEDS_READER,
        "boxes": NEEDS_BOXES,
        "depth": NEEDS_DEPTH,
        "clip": NEEDS_CLIP,
        "blip": NEEDS_BLIP,
    }
    ready = []
    for category in categories:
        here = True
        for part, needed in needs.items():
            if category in needed:
                try:
                    getattr(parts, part)
                except PartIsMissingError:
                    here = False
        if here:
            ready.append(category)
    return ready


def _mean_ceiling(work: Work, scorer: Scorer) -> float | None:
    if scorer.ceiling is None:
        return None
    ceilings = [scorer.ceiling(item.prompt) for item in work.items]
    known = [ceiling for ceiling in ceilings if ceiling is not None]
    return sum(known) / len(known) if len(known) == len(ceilings) else None


def _is_partial(work: Work, images_per_prompt: int) -> bool:
    complete = [entry for entry in work.images if len(entry.samples) >= images_per_prompt]
    return len(complete) < len(work.prompts)


def _export(
    samples: SampleSet, images: Mapping[str, Sequence[PromptImages]], output: Path, progress: Progress
) -> None:
    if output.is_dir() and any(output.iterdir()):
        progress.say(f"compbench: {output} is there already; the official layout is not written again")
        return
    count = export_official_layout(samples, images, output)
    progress.say(f"compbench: {count} images in the official layout in {output}")
