"""T2I-CompBench on a sample set: every category beside its null, and what is missing."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pixart_core.encoders.device import choose_device
from pixart_core.evaluation.compbench.attributes import attribute_protocol, attribute_scores
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
from pixart_core.evaluation.compbench.object_scores import (
    Ceiling,
    ObjectScores,
    check_dumps,
    depth_scores,
    numeracy_scores,
    object_protocol,
    spatial_scores,
)
from pixart_core.evaluation.compbench.parts import PartIsMissingError, Parts
from pixart_core.evaluation.compbench.prompts import Prompt, read_prompts
from pixart_core.evaluation.compbench.similarity import similarity_protocol, similarity_scores
from pixart_core.evaluation.compbench.summary import Protocol, summarise
from pixart_core.evaluation.compbench.work import Item, Score, Work, score_items
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.launch import Processes
from pixart_core.progress import Progress, Silent
from pixart_core.recipe.compbench import CompBenchOptions

Scorer = tuple[Score, Protocol, Ceiling | None]


def score_compbench(
    samples: SampleSet,
    options: CompBenchOptions,
    cache: Path,
    progress: Progress,
    *,
    device: torch.device | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Score `samples` in every category that has prompts among them and weights at hand.

    Args:
        cache: folder of scores by image, to which this adds; a killed run continues from it.
        device: default: the best there is.
        seed: of the shuffled prompts of the null.

    Returns:
        "categories": {category: {"protocol": id, "comparable": whether published numbers are of it,
            "score": mean over images, "ci95": [low, high] over prompts, "n": images, "n_prompts",
            "null": the same images against other prompts, "score_minus_null", "score_minus_null_ci95",
            "ceiling": best score that the rules allow, or None, "partial": not all prompts and images,
            "prompts": [{"prompt", "score", "null", "images": [{"file", "score", "reasons"}]}]}}; with one
            prompt there are no intervals and no null: None.
        "missing": [{"part", "categories", "size", "fix"}]: what could not be scored, and what it takes.

    Raises:
        UserError: an option names what is not there, or no sample has a prompt of the benchmark.
        PixartError: the disk is full; what is cached is kept.
    """
    prompts, images = _images(samples, options)
    if options.official_layout is not None:
        _export(samples, images, Path(options.official_layout).expanduser(), progress)
    parts = Parts(options, tuple(images), device or choose_device(None), batch_size)
    ready = _ready(parts, tuple(images))
    missing = [part.as_json() for part in _missing(parts, options, images)]
    for part in missing:
        progress.say(
            f"compbench: {', '.join(part['categories'])}: no {part['part']} ({part['size']}). {part['fix']}"
        )
    works = _works(samples, prompts, images, ready, parts, seed)
    categories = {}
    for category, work in works.items():
        score, protocol, ceiling = _scorer(work, parts, options, cache, progress)
        categories[category] = summarise(
            work.images,
            work.grouped(score_items(work, score)),
            protocol,
            ceiling=None if ceiling is None else _mean_ceiling(work, ceiling),
            partial=_is_partial(work, options.images_per_prompt),
        )
    return {"categories": categories, "missing": missing}


def share_compbench(
    samples: SampleSet,
    options: CompBenchOptions,
    cache: Path,
    processes: Processes,
    *,
    device: torch.device | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Put this process's share of what models say of the images into the caches, then wait for the others.

    Afterwards `score_compbench` with the same arguments asks no model, and gives what it gives alone.

    Raises:
        UserError, PixartError: as `score_compbench`.
    """
    prompts, images = _images(samples, options)
    parts = Parts(options, tuple(images), device or choose_device(None), batch_size)
    ready = _ready(parts, tuple(images))
    for work in _works(samples, prompts, images, ready, parts, seed).values():
        own = work.shared(processes, batch_size)
        if own.items:
            _scorer(own, parts, options, cache, Silent())
    processes.wait()


def _images(
    samples: SampleSet, options: CompBenchOptions
) -> tuple[dict[str, tuple[Prompt, ...]], dict[str, list[PromptImages]]]:
    """(prompts, those with images) by category."""
    refuse_wrong_paths(options)
    prompts = read_prompts(options.prompts, options.categories)
    return prompts, images_of_prompts(samples, prompts)


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


def _scorer(work: Work, parts: Parts, options: CompBenchOptions, cache: Path, progress: Progress) -> Scorer:
    match work.category:
        case "spatial":
            found = spatial_scores(work, parts.reader, parts.boxes, cache, progress)
            return _of_objects(found, object_protocol(parts.boxes, "2d", parts.reader.suffix))
        case "3d_spatial":
            found = depth_scores(work, parts.reader, parts.boxes, parts.depth, cache, progress)
            suffix = ("" if isinstance(parts.depth, Path) else parts.depth.name) + parts.reader.suffix
            return _of_objects(found, object_protocol(parts.boxes, "3d", suffix))
        case "numeracy":
            found = numeracy_scores(work, parts.boxes, cache, progress)
            return _of_objects(found, object_protocol(parts.boxes, "numeracy", ""))
        case "non_spatial":
            score = similarity_scores(work, parts.clip, None, cache, parts.batch_size, progress)
            return score, similarity_protocol(parts.clip), None
        case "complex":
            return _three_in_one(work, parts, options, cache, progress)
        case _:
            return _attributes(work, parts, options, cache, progress)


def _of_objects(found: ObjectScores, protocol: Protocol) -> Scorer:
    return found.score, protocol, found.ceiling


def _attributes(
    work: Work, parts: Parts, options: CompBenchOptions, cache: Path, progress: Progress
) -> Scorer:
    phrases = options.noun_phrases
    score = attribute_scores(work, parts.blip, parts.reader, phrases, cache, parts.batch_size, progress)
    return score, attribute_protocol(parts.blip, phrases, parts.reader), None


def _three_in_one(
    work: Work, parts: Parts, options: CompBenchOptions, cache: Path, progress: Progress
) -> Scorer:
    """3-in-1: the mean of those of attributes A, places S and actions C that the prompt speaks of."""
    attributes, protocol, _ = _attributes(work, parts, options, cache, progress)
    places = spatial_scores(work, parts.reader, parts.boxes, cache, progress).score
    actions = similarity_scores(work, parts.clip, parts.reader, cache, parts.batch_size, progress)
    others = [object_protocol(parts.boxes, "2d", ""), similarity_protocol(parts.clip)]

    def score(item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        used = [attributes]
        used += [places] if prompt.kind in ("spatial", "spatial-action") else []
        used += [actions] if prompt.kind in ("action", "spatial-action") else []
        found = [part(item, prompt) for part in used]
        reasons = tuple(reason for _, why in found for reason in why)
        return sum(value for value, _ in found) / len(found), reasons

    names = [other.id.removeprefix("compbench/").removesuffix("@1") for other in (protocol, *others)]
    comparable = protocol.comparable and all(other.comparable for other in others)
    return score, Protocol(f"compbench/3in1-{'-'.join(names)}@1", comparable), None


def _mean_ceiling(work: Work, ceiling: Ceiling) -> float:
    return sum(ceiling(item.prompt) for item in work.items) / len(work.items)


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
