"""The networks that benchmarks need, loaded together: what is missing is told all at once."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pixart_core.artifacts.patterns import expand_pattern
from pixart_core.errors import UserError
from pixart_core.evaluation.clip_score import ClipScorer, load_clip
from pixart_core.evaluation.extractors import (
    PIXELS,
    Extractor,
    cmmd_extractor,
    dinov2_extractor,
    features_extractor,
    fid_extractor,
    locate_model,
)
from pixart_core.evaluation.inception import DOWNLOAD, find_inception
from pixart_core.evaluation.reference import is_statistics
from pixart_core.recipe.evaluate import EvaluateStep

DISTANCES = ("frechet", "fid", "cmmd", "fd-dinov2")


@dataclasses.dataclass(frozen=True)
class Networks:
    """What benchmarks look through.

    Attributes:
        distances: extractor of each bench that compares with real images.
        clip: of the CLIP score.
    """

    distances: dict[str, Extractor]
    clip: ClipScorer | None

    @property
    def extractors(self) -> list[Extractor]:
        """All that look at the samples, each once."""
        found = [*self.distances.values(), *([self.clip.images] if self.clip else [])]
        return list({extractor.id: extractor for extractor in found}.values())


def load_networks(step: EvaluateStep, device: torch.device) -> Networks:
    """Load what the benches of `step` need.

    Raises:
        UserError: everything that is missing, one a line: which bench, which weights, how large.
    """
    mistakes: list[str] = []

    def load(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except UserError as error:
            mistakes.append(str(error))
            return None

    loaders: dict[str, Callable[[], Any]] = {
        "frechet": lambda: features_extractor(str(step.features), device),
        "fid": lambda: _fid(step, device),
        "cmmd": lambda: cmmd_extractor(str(step.cmmd_model), device),
        "fd-dinov2": lambda: dinov2_extractor(str(step.dinov2_model), device),
    }
    asked = _distances(step)
    mistakes += _of_reference(step)
    distances: dict[str, Extractor] = {bench: load(loaders[bench]) for bench in asked}
    clip = load(load_clip, str(step.clip_model), device) if "clip" in step.bench else None
    _refuse(mistakes)
    return Networks(distances, clip)


def check_networks(step: EvaluateStep) -> None:
    """Look whether the reference and all weights are there, without loading them: before samples are drawn.

    Raises:
        UserError: everything that is missing, one a line.
    """
    sources: dict[str, object] = {
        "cmmd": step.cmmd_model,
        "fd-dinov2": step.dinov2_model,
        "clip": step.clip_model,
    }
    mistakes = _of_reference(step)
    for bench in step.bench:
        try:
            if bench == "fid":
                path = find_inception(None if step.inception is None else str(step.inception))
                if not path.is_file():
                    mistakes.append(f"inception: no such file {path}; download {DOWNLOAD} and give its path")
            elif bench in sources:
                locate_model(str(sources[bench]), "clip" if bench == "clip" else "image_encoder", bench)
            elif bench == "frechet" and step.features != PIXELS:
                locate_model(str(step.features), "image_encoder", bench)
        except UserError as error:
            mistakes.append(str(error))
    _refuse(mistakes)


def _distances(step: EvaluateStep) -> list[str]:
    return [bench for bench in DISTANCES if bench in step.bench]


def _of_reference(step: EvaluateStep) -> list[str]:
    """What is wrong with what samples are compared with."""
    asked = _distances(step)
    if not asked:
        return []
    if step.reference is None:
        return [f"bench {', '.join(asked)} compares with real images: give --reference"]
    source = str(step.reference)
    if "cmmd" in asked and is_statistics(source):
        return ["bench cmmd compares with images, not statistics: give images as --reference"]
    there = source.startswith("hf:") or Path(source).expanduser().exists() or expand_pattern(source)
    return [] if there else [f"reference: no such file or folder {source}"]


def _refuse(mistakes: Sequence[str]) -> None:
    if mistakes:
        head = "" if len(mistakes) == 1 else f"{len(mistakes)} things are missing:\n  "
        raise UserError(head + "\n  ".join(mistakes))


def _fid(step: EvaluateStep, device: torch.device) -> Extractor:
    source = None if step.inception is None else str(step.inception)
    return fid_extractor(step.fid_protocol, find_inception(source), device)
