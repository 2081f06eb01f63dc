"""What T2I-CompBench would have to fetch, and what it cannot have here, without loading any of it."""

import dataclasses
from pathlib import Path

from pixart_core.encoders.pretrained import locate
from pixart_core.errors import UserError
from pixart_core.evaluation.compbench import blip_weights, missing
from pixart_core.evaluation.compbench.detectors import DEFAULTS
from pixart_core.evaluation.compbench.language import load_reader
from pixart_core.evaluation.compbench.missing import Missing
from pixart_core.evaluation.published_weights import cached_file
from pixart_core.recipe.compbench import CompBenchOptions


@dataclasses.dataclass(frozen=True)
class Download:
    """A model of the hub that is not in the cache yet."""

    part: str
    source: str
    size: str


@dataclasses.dataclass
class _Found:
    missing: list[Missing] = dataclasses.field(default_factory=list)
    downloads: list[Download] = dataclasses.field(default_factory=list)


def absent_parts(options: CompBenchOptions) -> tuple[list[Missing], list[Download]]:
    """(what cannot be had, what will be downloaded) for the categories of `options`.

    The hub is asked once a model. What is in its cache is neither.

    Raises:
        UserError: an option names a path that is not there.
    """
    missing.refuse_wrong_paths(options)
    categories, found = options.categories, _Found()
    if _any(missing.NEEDS_READER, categories):
        try:
            load_reader(options.chunker, options.spacy_model)
        except UserError as error:
            found.missing.append(missing.reader_is_missing(categories, error))
    if _any(missing.NEEDS_BLIP, categories):
        _look_for_blip(options, found)
    if _any(missing.NEEDS_CLIP, categories):
        _look(found, "CLIP", options.clip, missing.NEEDS_CLIP, categories, "clip")
    if _any(missing.NEEDS_BOXES, categories):
        if options.detector != "unidet-json":
            source = options.detector_model or DEFAULTS[options.detector]
            _look(found, "detector", source, missing.NEEDS_BOXES, categories, "detector_model")
        elif options.detections is None:
            found.missing.append(missing.detections_are_not_named(categories))
    if _any(missing.NEEDS_DEPTH, categories):
        _look(found, "depth model", options.depth, missing.NEEDS_DEPTH, categories, "depth")
    return found.missing, found.downloads


def _look_for_blip(options: CompBenchOptions, found: _Found) -> None:
    cached = cached_file(blip_weights.PUBLISHED)
    blip = options.blip or (None if cached is None else str(cached))
    if blip is None:
        found.missing.append(missing.blip_is_not_named(options.categories))
        return
    is_address = blip.startswith("https://")
    if not is_address:
        _look(found, "BLIP-VQA", blip, missing.NEEDS_BLIP, options.categories, "blip")
    elif cached is None:
        found.downloads.append(Download("BLIP-VQA", blip, blip_weights.OFFICIAL_SIZE))
    if is_address or Path(blip).expanduser().is_file():
        needed, source = missing.NEEDS_BLIP, options.blip_tokenizer
        _look(found, "vocabulary of BLIP-VQA", source, needed, options.categories, "blip_tokenizer")


def _look(
    found: _Found,
    part: str,
    source: str,
    needed: tuple[str, ...],
    categories: tuple[str, ...],
    option: str,
) -> None:
    if Path(source).expanduser().exists():
        return
    try:
        locate(source, part)
    except UserError as error:
        found.missing.append(missing.model_is_missing(part, source, needed, categories, option, error))
        return
    if not _is_cached(source):
        found.downloads.append(Download(part, source, missing.size_of(source)))


def _is_cached(source: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, "config.json"), str)


def _any(needed: tuple[str, ...], categories: tuple[str, ...]) -> bool:
    return bool(set(needed) & set(categories))
