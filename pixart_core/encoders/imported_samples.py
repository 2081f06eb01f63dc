"""The samples of an import that can be used, and what is wrong with the others; nothing is written yet."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from pixart_core.artifacts.feature_plan import Bucket
from pixart_core.data.buckets import PAPER_RESOLUTIONS
from pixart_core.encoders.ahead import map_ahead
from pixart_core.encoders.array_files import UnusableFeatureError
from pixart_core.encoders.feature_exchange import FeatureSource, Sample
from pixart_core.encoders.imported_encoders import ImportedEncoders
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.features import ImportFeaturesStep

DROPPED = "dropped.jsonl"


@dataclasses.dataclass(frozen=True)
class UsableSamples:
    """The usable samples: of each image, one at each resolution.

    Attributes:
        places: {image id: {resolution: sample's index in the source}}, in the order of the store.
        first: a sample of each image, which tells what is the same at every resolution.
        buckets: {image id: {resolution: (height, width) of the encoded picture, in pixels}}.
        tables: the buckets of each resolution.
        dropped: {"path", "reason"} of each sample that cannot be used.
    """

    places: Mapping[str, Mapping[int, int]]
    first: Mapping[str, Sample]
    buckets: Mapping[str, Mapping[int, Bucket]]
    tables: Mapping[int, tuple[Bucket, ...]]
    dropped: Sequence[Mapping[str, str]]

    @property
    def has_empty_caption(self) -> bool:
        """Whether an image has the caption ""."""
        return any(not sample.caption for sample in self.first.values())

    @property
    def longest_text(self) -> int:
        """Tokens."""
        return max(sample.text[0] for sample in self.first.values())


def usable_samples(
    step: ImportFeaturesStep, source: FeatureSource, encoders: ImportedEncoders, progress: Progress
) -> UsableSamples:
    """Read every sample; those that cannot be used are named and counted.

    Raises:
        UserError: too many, or samples of different encoders.
    """
    for note in source.notes:
        progress.say(note)
    found: list[tuple[int, Sample]] = []
    dropped: list[dict[str, str]] = []
    progress.start("check", len(source))
    for index, result in enumerate(map_ahead(lambda index: _checked(source, index), range(len(source)))):
        if isinstance(result, Sample):
            _refuse_other_widths(source.place(index), result, encoders)
            found.append((index, result))
        else:
            dropped.append({"path": source.place(index), "reason": result})
        progress.advance("check")
    progress.finish("check")
    joined = _joined(step, source, found, encoders, dropped)
    if not joined.places or len(dropped) > step.max_bad_fraction * len(source):
        raise UserError(_too_bad(step, dropped, len(source)))
    if dropped:
        progress.say(f"left out {len(dropped)} of {len(source)} samples; {DROPPED} names them")
    return joined


def _checked(source: FeatureSource, index: int) -> Sample | str:
    try:
        return source.check(index)
    except UnusableFeatureError as error:
        return str(error)


def _joined(
    step: ImportFeaturesStep,
    source: FeatureSource,
    found: Sequence[tuple[int, Sample]],
    encoders: ImportedEncoders,
    dropped: list[dict[str, str]],
) -> UsableSamples:
    """Bring the resolutions of each image together; one that lacks a resolution is dropped."""
    factor = int(encoders.vae["downsampling"])
    resolutions = _resolutions(step, [sample for _, sample in found], factor)
    places: dict[str, dict[int, int]] = {}
    buckets: dict[str, dict[int, Bucket]] = {}
    first: dict[str, Sample] = {}
    for index, sample in sorted(found, key=lambda pair: -1 if pair[1].row is None else pair[1].row):
        resolution = sample.resolution or resolutions[0]
        mine = places.setdefault(sample.id, {})
        if resolution in mine:
            dropped.append({"path": source.place(index), "reason": f"a second sample of image {sample.id}"})
            continue
        mine[resolution] = index
        buckets.setdefault(sample.id, {})[resolution] = (
            sample.latents[1] * factor,
            sample.latents[2] * factor,
        )
        first.setdefault(sample.id, sample)
    for name in [name for name, mine in places.items() if len(mine) < len(resolutions)]:
        lacking = next(resolution for resolution in resolutions if resolution not in places[name])
        index = next(iter(places.pop(name).values()))
        dropped.append({"path": source.place(index), "reason": f"not there at resolution {lacking}"})
        del buckets[name], first[name]
    used = {r: tuple(sorted({mine[r] for mine in buckets.values()})) for r in resolutions}
    told = {
        int(r): tuple((h, w) for h, w in table) for r, table in (source.known.get("tables") or {}).items()
    }
    # The store's own tables keep their order and the buckets that are empty here.
    tables = {r: told[r] if set(used[r]) <= set(told.get(r, ())) else used[r] for r in resolutions}
    return UsableSamples(places, first, buckets, tables, dropped)


def _resolutions(step: ImportFeaturesStep, samples: Sequence[Sample], factor: int) -> list[int]:
    told = sorted({sample.resolution for sample in samples if sample.resolution is not None})
    if told or not samples:
        return told
    if step.resolution is not None:
        return [step.resolution]
    areas = Counter(sample.latents[1] * sample.latents[2] for sample in samples)
    side = math.sqrt(areas.most_common(1)[0][0]) * factor
    # Buckets of one resolution have about its area.
    nearest = min(PAPER_RESOLUTIONS, key=lambda resolution: abs(resolution - side))
    return [nearest if abs(nearest - side) < side / 16 else round(side)]


def _refuse_other_widths(place: str, sample: Sample, encoders: ImportedEncoders) -> None:
    expected = (encoders.vae["latent_channels"], encoders.text["channels"])
    if (sample.latents[0], sample.text[1]) != expected:
        raise UserError(
            f"{place}: {sample.latents[0]} latent channels and text of width {sample.text[1]}; the others "
            f"have {expected[0]} and {expected[1]}"
        )


def _too_bad(step: ImportFeaturesStep, dropped: Sequence[Mapping[str, str]], total: int) -> str:
    examples = "; ".join(f"{row['path']}: {row['reason']}" for row in dropped[:3])
    return (
        f"{step.source}: {len(dropped)} of {total} samples are missing or damaged: {examples}; mend them or "
        f"raise max_bad_fraction ({step.max_bad_fraction:g})"
    )
