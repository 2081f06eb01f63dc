"""`pixart extract-features --import`: features that were made elsewhere, into a feature store.

Every sample is read twice: once to see that it is whole, before anything is written, and once to store it.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixart_core.artifacts.card import card_for, read_card
from pixart_core.artifacts.feature_plan import FeaturePlan, PlannedImage, PlannedShard
from pixart_core.artifacts.feature_writer import FeatureWriter
from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.publish import write_text
from pixart_core.encoders.ahead import map_ahead
from pixart_core.encoders.feature_exchange import KIND, FeatureSource
from pixart_core.encoders.feature_sources import ArchiveSource, DatasetSource
from pixart_core.encoders.imported_encoders import ImportedEncoders, imported_encoders
from pixart_core.encoders.imported_samples import DROPPED, UsableSamples, usable_samples
from pixart_core.encoders.reference_features import ReferenceSource, looks_like_reference
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.features import ImportFeaturesStep, Storage

_SHARD_SIZE = 2048


def import_features(step: ImportFeaturesStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Write a feature store in `output` from the features in `step.source`.

    Killed and run again, it goes on after the last whole shard.

    Returns:
        output, source (its format), count, captions, buckets, storage, error and dropped.

    Raises:
        UserError: the data cannot be used, or too many samples are missing or damaged.
        PixartError: the disk is full; published shards are kept.
    """
    found = read_import(step, progress)
    with only_launch(output):
        return store_import(found, output, progress)


@dataclasses.dataclass(frozen=True)
class FoundFeatures:
    """Features that were read once, and can be stored."""

    step: ImportFeaturesStep
    source: FeatureSource
    encoders: ImportedEncoders
    samples: UsableSamples
    storage: Storage
    max_tokens: int

    def plan(self, output: Path) -> FeaturePlan:
        """Plan a store of all of them in `output`.

        Raises:
            UserError: another one is there.
        """
        settings = {
            "storage": self.storage,
            "max_tokens": self.max_tokens,
            "flip": self.source.flips,
            "imported": self.source.kind,
            "vae": self.encoders.vae.get("hash"),
            "text_encoder": self.encoders.text.get("hash"),
        }
        size = int(self.step.shard_size or self.source.known.get("shard_size") or _SHARD_SIZE)
        plan = FeaturePlan.open(output, settings, tables=self.samples.tables, shard_size=size)
        plan.extend(_planned(self.samples))
        return plan


def read_import(step: ImportFeaturesStep, progress: Progress) -> FoundFeatures:
    """Read everything in `step.source` once; nothing is written.

    Raises:
        UserError: it cannot be used, or too many samples are missing or damaged.
    """
    source = open_source(step)
    encoders = imported_encoders(step, source)
    samples = usable_samples(step, source, encoders, progress)
    storage = step.storage or source.known.get("storage") or "int8"
    max_tokens = int(source.known.get("max_tokens") or max(samples.longest_text, 120))
    return FoundFeatures(step, source, encoders, samples, storage, max_tokens)


def store_import(found: FoundFeatures, output: Path, progress: Progress) -> dict[str, Any]:
    """Write a feature store of `found`; `import_features` says what comes back. Call it as the only launch.

    Raises:
        UserError: another store is there.
        PixartError: the disk is full; published shards are kept.
    """
    step, source, encoders, samples = found.step, found.source, found.encoders, found.samples
    plan = found.plan(output)
    write_text(output / DROPPED, "".join(json.dumps(row, sort_keys=True) + "\n" for row in samples.dropped))
    writer = FeatureWriter(output, plan, found.storage, first=True)
    _write_texts(source, samples, encoders, plan, writer, progress)
    _write_images(source, samples, plan, writer, progress)
    details = {
        "latent_channels": encoders.vae["latent_channels"],
        "caption_channels": encoders.text["channels"],
        "max_tokens": found.max_tokens,
        "count": plan.count,
        "captions": plan.captions,
        "resolutions": list(plan.tables),
        "buckets": {f"{height}x{width}": count for (height, width), count in plan.counts().items()},
        "storage": found.storage,
        "horizontal_flip": source.flips,
        "empty_caption": encoders.empty_caption is not None
        or any(not s.caption for s in samples.first.values()),
        "vae": encoders.vae,
        "text_encoder": encoders.text,
        "label_names": list(source.known.get("label_names") or []),
        "sources": {"import": str(Path(str(step.source)).resolve())},
        "error": writer.errors(),
    }
    writer.finish(card_for("features", step, details))
    told = {name: details[name] for name in ("count", "captions", "buckets", "storage", "error")}
    return {"output": str(output), "source": source.kind, **told, "dropped": len(samples.dropped)}


def open_source(step: ImportFeaturesStep) -> FeatureSource:
    """Find out what `step.source` holds.

    Raises:
        UserError: nothing that is known, an unfinished export, or damaged.
    """
    folder = Path(str(step.source))
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of the features to import")
    card = read_card(folder)
    if card is not None and card["kind"] != KIND:
        raise UserError(f"{folder} holds {card['kind']}; import reads exports and other programs' features")
    if card is None and (folder / "export.json").exists():
        raise UserError(f"{folder} is an unfinished export; run the export again to finish it")
    known = card["details"] if card is not None else {}
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return DatasetSource(folder, known)
    if archives := sorted(folder.rglob("*.tar")):
        return ArchiveSource(folder, archives, known)
    if looks_like_reference(folder) or step.vae_features or step.text_features:
        return ReferenceSource(folder, step.list_file, step.vae_features, step.text_features)
    raise UserError(
        f"{folder} holds no WebDataset archives (*.tar), no Hugging Face data set (state.json) and no "
        "features of PixArt's code (img_vae_*/, caption_feature*/)"
    )


def _planned(samples: UsableSamples) -> Iterator[PlannedImage]:
    for name, sample in samples.first.items():
        buckets = samples.buckets[name]
        largest = max(buckets.values())
        height, width = sample.height or largest[0], sample.width or largest[1]
        mine = tuple(buckets[resolution] for resolution in samples.tables)
        yield PlannedImage(name, sample.caption, sample.label, height, width, mine)


def _write_texts(
    source: FeatureSource,
    samples: UsableSamples,
    encoders: ImportedEncoders,
    plan: FeaturePlan,
    writer: FeatureWriter,
    progress: Progress,
) -> None:
    shards = writer.missing("text")
    if not shards:
        return
    absent = np.zeros((1, int(encoders.text["channels"])), np.float32)
    empty = absent if encoders.empty_caption is None else encoders.empty_caption
    firsts = plan.first_uses(np.concatenate([np.asarray(shard.rows) for shard in shards]))
    progress.start("captions", len(firsts))

    def tokens(row: int) -> torch.Tensor:
        if row < 0:
            return torch.from_numpy(empty.copy())
        index = next(iter(samples.places[plan.ids([row])[0]].values()))
        return torch.from_numpy(source.tokens(index).copy())

    start = 0
    for shard in shards:
        rows = firsts[start : start + len(shard.rows)].tolist()
        start += len(rows)
        writer.write_text(shard, map_ahead(tokens, rows))
        progress.advance("captions", len(rows))
    progress.finish("captions")


def _write_images(
    source: FeatureSource,
    samples: UsableSamples,
    plan: FeaturePlan,
    writer: FeatureWriter,
    progress: Progress,
) -> None:
    shards = writer.missing("image")
    if not shards:
        return
    resolution_of = {bucket: resolution for resolution, table in plan.tables.items() for bucket in table}
    progress.start("images", sum(len(shard.rows) for shard in shards))
    for shard in shards:
        assert shard.bucket is not None
        writer.write_images(shard, _moments(source, samples, plan, shard, resolution_of[shard.bucket]))
        progress.advance("images", len(shard.rows))
    progress.finish("images")


def _moments(
    source: FeatureSource, samples: UsableSamples, plan: FeaturePlan, shard: PlannedShard, resolution: int
) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    ids = plan.ids(shard.rows)
    found = map_ahead(lambda name: source.moments(samples.places[name][resolution]), ids)
    for name, moments in zip(ids, found, strict=True):
        yield [name], {kind: torch.from_numpy(value.copy())[None] for kind, value in moments.items()}
