"""`pixart extract-features`: VAE moments and text tokens of a data set, once, into a feature store.

Details in the card: latent_channels, caption_channels, max_tokens, storage, count, resolutions, buckets
("64x64": images), horizontal_flip, captions (distinct ones), vae (see `describe_vae`) and text_encoder
(`TextEncoder.describe`), each with the `source` to load it from, label_names, sources (where data and
captions lay, for repairs), error (relative rms error of each kind of stored value).
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.feature_plan import FeaturePlan
from pixart_core.artifacts.feature_writer import FeatureWriter
from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.manifest_guard import manifest_kept_on_failure
from pixart_core.encoders.device import choose_device
from pixart_core.encoders.feature_data import Tables, TrainingData, bucket_tables, training_data
from pixart_core.encoders.feature_encode import ImageEncoding, encode_text_shards, group_shards
from pixart_core.encoders.feature_parts import (
    Encoders,
    Part,
    load_encoders,
    loadable,
    read_described,
    refuse_other_encoders,
    write_described,
)
from pixart_core.launch import Processes, connect
from pixart_core.progress import Progress
from pixart_core.recipe.features import ExtractFeaturesStep


def run_extraction(step: ExtractFeaturesStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Encode the training images of `step.data` and their captions into a feature store in `output`.

    Killed and run again, it goes on after the last whole shards and ends with the same bytes; with more
    data it adds shards and leaves those that are there. The processes of one launch share the shards.

    Returns:
        output, complete (False while the other part is to be made), and count, captions, buckets, storage,
        error, uncaptioned (images without a caption) and excluded (left out for their caption's mark).

    Raises:
        UserError: data, captions or encoders cannot be used, or `output` holds other features.
        PixartError: the disk is full; published shards are kept.
    """
    processes = connect()
    device = choose_device(step.device, processes.local_rank)
    tables = bucket_tables(step)
    encoders = load_encoders(step, device)
    with only_launch(output) if processes.first else contextlib.nullcontext():
        plan = open_plan(step, output, tables)  # refuses other settings before anything is scanned
        refuse_other_encoders(output, encoders.described)
        if processes.first:
            with manifest_kept_on_failure(output / "manifest"):
                data = training_data(step, output / "manifest", progress)
                if step.captions is not None:
                    data.refuse_other_pictures(Path(str(step.captions)), progress)
                new = plan.extend(data.planned(tables))  # refuses data that are not those of before
            if new < plan.count and new:
                progress.say(f"{new} images are new; {plan.count - new} were planned before")
            write_described(output, encoders.described)
            writer = FeatureWriter(output, plan, step.storage, first=True)
        processes.wait()
        if not processes.first:
            data = training_data(step, output / "manifest", progress)
            plan = open_plan(step, output, tables)
            writer = FeatureWriter(output, plan, step.storage)
        processes.wait()  # nobody writes before all have seen what is missing
        encode_missing(step, encoders, data, plan, writer, processes, progress)
        processes.wait()
        if not processes.first:
            return {"output": str(output)}
        return _finish(step, output, plan, writer, data, progress)


def open_plan(step: ExtractFeaturesStep, output: Path, tables: Tables) -> FeaturePlan:
    """The plan of the store in `output`.

    Raises:
        UserError: it holds something else, or features made with other settings.
    """
    settings = {
        "storage": step.storage,
        "max_tokens": step.max_tokens,
        "flip": step.horizontal_flip,
        "vae_dtype": step.vae_dtype or step.dtype,
        "text_encoder_dtype": step.text_encoder_dtype or step.dtype,
    }
    return FeaturePlan.open(output, settings, tables=tables, shard_size=step.shard_size)


def encode_missing(
    step: ExtractFeaturesStep,
    encoders: Encoders,
    data: TrainingData,
    plan: FeaturePlan,
    writer: FeatureWriter,
    processes: Processes,
    progress: Progress,
) -> None:
    """Make this process's share of the shards that are not there, of the parts that have an encoder.

    Raises:
        UserError: a picture is gone, or an encoder computes values that are not finite.
        PixartError: the disk is full; published shards are kept.
    """
    if encoders.text is not None:
        encode_text_shards(
            encoders.text,
            processes.share(writer.missing("text")),
            plan,
            data.caption,
            writer,
            progress,
            max_tokens=step.max_tokens,
            batch_size=step.batch_size,
        )
    if encoders.vae is not None:
        encoding = ImageEncoding(
            encoders.vae,
            read=data.picture,
            place=data.place,
            name=str(encoders.described["image"]["name"]),
            batch_size=step.batch_size,
            flip=step.horizontal_flip,
        )
        groups = group_shards(writer.missing("image"))
        encoding.encode_shards(processes.share(groups), plan, writer, progress)


def _finish(
    step: ExtractFeaturesStep,
    output: Path,
    plan: FeaturePlan,
    writer: FeatureWriter,
    data: TrainingData,
    progress: Progress,
) -> dict[str, Any]:
    errors = writer.errors()
    counts = {
        "count": plan.count,
        "captions": plan.captions,
        "buckets": {f"{height}x{width}": count for (height, width), count in plan.counts().items()},
        "storage": step.storage,
        "error": errors,
        "excluded": data.excluded,
    }
    details = counts | _details(step, output, plan, data)
    complete = writer.finish(card_for("features", step, details))
    uncaptioned = int((plan.column("caption", np.arange(plan.count)) == 0).sum())
    _report(step, errors, uncaptioned, data, complete, progress)
    return {"output": str(output), "complete": complete, **counts, "uncaptioned": uncaptioned}


def _details(
    step: ExtractFeaturesStep, output: Path, plan: FeaturePlan, data: TrainingData
) -> dict[str, Any]:
    """What the card says besides counts; of a part that is not begun yet, nothing (there is no card then)."""
    vae, text = read_described(output, "image") or {}, read_described(output, "text") or {}
    sources = {"data": step.data, "captions": step.captions}
    return {
        "latent_channels": vae.get("latent_channels"),
        "caption_channels": text.get("channels"),
        "max_tokens": step.max_tokens,
        "resolutions": list(plan.tables),
        "horizontal_flip": step.horizontal_flip,
        "vae": vae,
        "text_encoder": text,
        "label_names": list(data.label_names),
        "sources": {name: loadable(str(value)) for name, value in sources.items() if value is not None},
    }


def _report(
    step: ExtractFeaturesStep,
    errors: Mapping[str, float],
    uncaptioned: int,
    data: TrainingData,
    complete: bool,
    progress: Progress,
) -> None:
    if data.excluded:
        progress.say(f"{data.excluded} images are left out: their captions are marked as excluded")
    if uncaptioned == data.count and step.label_key is not None:
        progress.say("no image has a caption: these features are for a class-conditional model")
    elif uncaptioned:
        progress.say(f"{uncaptioned} of {data.count} images have no caption; they train on the empty one")
    if step.storage != "fp32":
        parts = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
        progress.say(f"relative rms error of {step.storage} storage: {parts}")
    if not complete:
        other: Part = "text" if step.only == "image" else "image"
        progress.say(f"the {other} part is not there yet: run again with --only {other}, or without --only")
