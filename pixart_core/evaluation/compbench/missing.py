"""What T2I-CompBench needs and is not here: said with size and remedy, while the rest is scored."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench import blip_weights, depth, detectors
from pixart_core.evaluation.published_weights import cached_file
from pixart_core.recipe.compbench import CompBenchOptions

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
ATTRIBUTES = ("color", "shape", "texture")
NEEDS_BLIP = (*ATTRIBUTES, "complex")
NEEDS_CLIP = ("non_spatial", "complex")
NEEDS_BOXES = ("spatial", "3d_spatial", "numeracy", "complex")
NEEDS_DEPTH = ("3d_spatial",)
NEEDS_READER = (*ATTRIBUTES, "spatial", "3d_spatial", "complex")
_KNOWN_SIZES = {
    "openai/clip-vit-base-patch32": "605 MB",
    "google-bert/bert-base-uncased": "less than 1 MB",
    "Salesforce/blip-vqa-base": "1.5 GB",
    "Salesforce/blip-vqa-capfilt-large": "1.5 GB",
    "Intel/dpt-hybrid-midas": depth.SIZE,
    detectors.DEFAULTS["owlv2"]: detectors.SIZES["owlv2"],
    detectors.DEFAULTS["grounding-dino"]: detectors.SIZES["grounding-dino"],
}


@dataclasses.dataclass(frozen=True)
class Missing:
    """A part that is not here.

    Attributes:
        size: of the download, in words.
        fix: what to do.
    """

    part: str
    categories: tuple[str, ...]
    size: str
    fix: str

    def as_json(self) -> dict[str, Any]:
        """For results and reports."""
        return dataclasses.asdict(self) | {"categories": list(self.categories)}


def blip_is_not_named(categories: Collection[str]) -> Missing:
    """The option `blip` was not given: the official weights have no hub id."""
    return Missing(
        f"BLIP-VQA weights ({blip_weights.OFFICIAL_FILE})",
        _of(NEEDS_BLIP, categories),
        blip_weights.OFFICIAL_SIZE,
        f"Give compbench.blip=PATH of {blip_weights.OFFICIAL_URL}, or this address to have it fetched; or, "
        "as another protocol, "
        "compbench.blip=Salesforce/blip-vqa-capfilt-large (384 px, 1.5 GB)",
    )


def detections_are_not_named(categories: Collection[str]) -> Missing:
    """The detector is unidet-json, and there is no file."""
    kind: detectors.Kind = "owlv2"
    return Missing(
        "detections of the official UniDet",
        _of(NEEDS_BOXES, categories),
        "a file that the official code makes",
        "Dump them (docs/compbench.md) and give compbench.detections=FILE; or, as another protocol, "
        f"compbench.detector={kind} ({detectors.DEFAULTS[kind]}, {detectors.SIZES[kind]})",
    )


def unnamed_parts(options: CompBenchOptions) -> list[Missing]:
    """What `options` leave out that has no default, for all their categories."""
    found = []
    if options.blip is None and cached_file(blip_weights.PUBLISHED) is None:
        found.append(blip_is_not_named(options.categories))
    if options.detector == "unidet-json" and options.detections is None:
        found.append(detections_are_not_named(options.categories))
    return [part for part in found if part.categories]


def reader_is_missing(categories: Collection[str], error: UserError) -> Missing:
    """Neither spaCy's English pipeline nor TextBlob is installed."""
    return Missing(
        "a reader of noun phrases",
        _of(NEEDS_READER, categories),
        "less than 50 MB",
        f"{error}",
    )


def model_is_missing(
    part: str,
    source: str,
    needed: tuple[str, ...],
    categories: Collection[str],
    option: str,
    error: UserError,
) -> Missing:
    """A model of the hub could not be had.

    Args:
        option: that names it.
    """
    fix = f"{error}. Download it where there is network, and give compbench.{option}=FOLDER"
    return Missing(f"{part} ({source})", _of(needed, categories), size_of(source), fix)


def prompts_are_missing(categories: Collection[str], fix: str) -> Missing:
    """Neither a folder with prompts of these categories nor the data set of the hub is here."""
    return Missing("prompts", tuple(categories), "less than 1 MB", fix)


def size_of(source: str) -> str:
    """Of the download of a model, in words."""
    return _KNOWN_SIZES.get(source, "size unknown")


def images_are_missing(categories: Collection[str]) -> Missing:
    """The samples have no prompts of these categories."""
    return Missing(
        "images of their prompts",
        tuple(categories),
        "sampled, not downloaded",
        "Sample the prompts of these categories too",
    )


def refuse_wrong_paths(options: CompBenchOptions) -> None:
    """Raise for options that name a file or folder that is not there: a slip, not a missing download.

    Raises:
        UserError: names the option.
    """
    named: Mapping[str, str | None] = {
        "prompts": options.prompts,
        "blip": options.blip,
        "blip_tokenizer": options.blip_tokenizer,
        "clip": options.clip,
        "detector_model": options.detector_model,
        "depth": options.depth,
    }
    for field, source in named.items():
        if source is None or (field == "blip" and source.startswith("https://")):
            continue
        if not Path(source).expanduser().exists() and not _may_be_hub_id(source):
            raise UserError(f"compbench.{field}: {source}: no such file or folder")
    if options.detections is not None and not Path(options.detections).expanduser().is_file():
        raise UserError(f"compbench.detections: {options.detections}: no such file")


def _may_be_hub_id(source: str) -> bool:
    is_path = source.startswith(".") or source.endswith((".pth", ".pt", ".safetensors"))
    return bool(_HUB_ID.fullmatch(source)) and not is_path


def _of(needed: Collection[str], categories: Collection[str]) -> tuple[str, ...]:
    return tuple(category for category in categories if category in needed)
