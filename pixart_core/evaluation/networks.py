"""The networks that benchmarks need, loaded together: what is missing is told all at once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from pixart_core.errors import UserError
from pixart_core.evaluation.clip_score import ClipScorer, load_clip
from pixart_core.evaluation.extractors import (
    Extractor,
    cmmd_extractor,
    dinov2_extractor,
    features_extractor,
    fid_extractor,
)
from pixart_core.evaluation.inception import find_inception
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
    asked = [bench for bench in DISTANCES if bench in step.bench]
    if asked and step.reference is None:
        mistakes.append(f"bench {', '.join(asked)} compares with real images: give reference")
    elif "cmmd" in asked and is_statistics(str(step.reference)):
        mistakes.append("bench cmmd compares with images, not statistics: give images as reference")
    distances: dict[str, Extractor] = {bench: load(loaders[bench]) for bench in asked}
    clip = load(load_clip, str(step.clip_model), device) if "clip" in step.bench else None
    if mistakes:
        head = "" if len(mistakes) == 1 else f"{len(mistakes)} things are missing:\n  "
        raise UserError(head + "\n  ".join(mistakes))
    return Networks(distances, clip)


def _fid(step: EvaluateStep, device: torch.device) -> Extractor:
    source = None if step.inception is None else str(step.inception)
    return fid_extractor(step.fid_protocol, find_inception(source), device)
