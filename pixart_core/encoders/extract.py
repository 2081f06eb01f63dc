"""`pixart extract-features`: VAE moments and text tokens of a data set, once, into a feature store.

Details in the card: latent_channels, caption_channels, max_tokens, storage, count, buckets ("64x64":
images), captions (distinct ones), vae (see `describe_vae`), text_encoder (`TextEncoder.describe`),
label_names, error (relative rms error of each kind of stored value).
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from torch import Tensor

from pixart_core.artifacts.captions import read_captions
from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.feature_files import only_launch
from pixart_core.artifacts.feature_plan import Bucket, FeaturePlan, PlannedImage
from pixart_core.artifacts.feature_writer import FeatureWriter
from pixart_core.artifacts.manifest import ImageRecord, Manifest
from pixart_core.data.buckets import assign_bucket, bucket_table
from pixart_core.data.images import ImageReader, resize_and_crop
from pixart_core.data.scan import manifest_for
from pixart_core.encoders.device import choose_device
from pixart_core.encoders.text import TextEncoder, load_text_encoder
from pixart_core.encoders.vae import describe_vae, encode_moments, load_vae, vae_downsampling
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.features import ExtractFeaturesStep

# Splitting short operations over the cores of a CPU costs more than it gains, much more on a busy machine.
_SMALL_MODEL = 2**22  # parameters
_SMALL_BATCH = 2**20  # pixels
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def run_extraction(step: ExtractFeaturesStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Encode the training images of `step.data` and their captions into a feature store in `output`.

    Killed and run again, it goes on after the last whole shard and ends with the same bytes.

    Returns:
        output, and count, captions, buckets, storage, error and uncaptioned (images without a caption).

    Raises:
        UserError: data, captions or encoders cannot be used, or `output` holds other features.
        PixartError: the disk is full; published shards are kept.
    """
    device, dtype = choose_device(step.device), _DTYPES[step.dtype]
    vae = load_vae(str(step.vae), device, dtype)
    vae_details = describe_vae(vae, str(step.vae))
    table = _bucket_table(step, vae)
    text_encoder = load_text_encoder(str(step.text_encoder), device, dtype)

    manifest = manifest_for(step, output / "manifest", progress)
    records = manifest.split("train")
    if not records:
        raise UserError(f"{step.data}: no images are left for training (all are held out)")
    captions = _captions(step, records)
    settings = _deciding_options(step) | {
        "vae": vae_details["hash"],
        "text_encoder": text_encoder.describe()["hash"],
    }
    resolution = step.all_resolutions[0]
    with only_launch(output):
        plan = FeaturePlan.open(output, settings, tables={resolution: table}, shard_size=step.shard_size)
        plan.extend(_planned(records, captions, table))
        writer = FeatureWriter(output, plan, step.storage, first=True)
        texts = {record.id: text for record, text in zip(records, captions, strict=True)}
        _encode_captions(step, text_encoder, plan, texts, writer, progress)
        _encode_images(step, vae, manifest, {record.id: record for record in records}, writer, progress)
        return _finish(step, output, plan, writer, vae_details, text_encoder, manifest, captions, progress)


def _finish(
    step: ExtractFeaturesStep,
    output: Path,
    plan: FeaturePlan,
    writer: FeatureWriter,
    vae_details: dict[str, Any],
    text_encoder: TextEncoder,
    manifest: Manifest,
    captions: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    details = {
        "latent_channels": vae_details["latent_channels"],
        "caption_channels": text_encoder.channels,
        "max_tokens": step.max_tokens,
        "storage": step.storage,
        "count": plan.count,
        "buckets": {f"{height}x{width}": count for (height, width), count in plan.counts().items()},
        "captions": plan.captions,
        "vae": vae_details | {"source": _loadable(str(step.vae))},
        "text_encoder": text_encoder.describe() | {"source": _loadable(str(step.text_encoder))},
        "label_names": list(manifest.label_names),
        "error": writer.errors(),
    }
    writer.finish(card_for("features", step, details))
    uncaptioned = captions.count("")
    _report(step, details["error"], uncaptioned, plan.count, progress)
    told = {key: details[key] for key in ("count", "captions", "buckets", "storage", "error")}
    return {"output": str(output), **told, "uncaptioned": uncaptioned}


def _bucket_table(step: ExtractFeaturesStep, vae: AutoencoderKL) -> tuple[Bucket, ...]:
    table = bucket_table(step.aspect_buckets, step.all_resolutions[0])
    factor = vae_downsampling(vae)
    for height, width in table:
        if height % factor or width % factor:
            raise UserError(f"bucket {height}x{width}: the VAE needs sides that are multiples of {factor}")
    return table


def _captions(step: ExtractFeaturesStep, records: Sequence[ImageRecord]) -> list[str]:
    if step.captions is None:
        return [(record.caption or "").strip() for record in records]
    rows = read_captions(str(step.captions))
    missing = [record for record in records if record.id not in rows]
    if missing:
        raise UserError(
            f"{step.captions} lacks the captions of {len(missing)} of {len(records)} images, e.g. of "
            f"{missing[0].path} ({missing[0].id}); caption the same data"
        )
    return [rows[record.id].caption.strip() for record in records]


def _deciding_options(step: ExtractFeaturesStep) -> dict[str, Any]:
    """Options that change what is stored; the others only change how, or are seen in the records."""
    chosen = ("resolution", "resolutions", "aspect_buckets", "max_tokens", "storage", "shard_size", "dtype")
    return step.model_dump(mode="json", include=set(chosen))


def _planned(
    records: Sequence[ImageRecord], captions: Sequence[str], table: Sequence[Bucket]
) -> Iterator[PlannedImage]:
    nearest: dict[tuple[int, int], Bucket] = {}
    for record, caption in zip(records, captions, strict=True):
        size = (record.height, record.width)
        if size not in nearest:
            nearest[size] = assign_bucket(*size, table)
        yield PlannedImage(record.id, caption, record.label, *size, (nearest[size],))


def _encode_captions(
    step: ExtractFeaturesStep,
    encoder: TextEncoder,
    plan: FeaturePlan,
    captions: dict[str, str],
    writer: FeatureWriter,
    progress: Progress,
) -> None:
    small = encoder.model.device.type == "cpu" and encoder.model.num_parameters() < _SMALL_MODEL
    progress.start("captions", plan.captions)
    progress.advance("captions", plan.captions - sum(len(shard.rows) for shard in writer.missing("text")))
    for shard in writer.missing("text"):
        uses = plan.first_uses(shard.rows).tolist()
        texts = ["" if row < 0 else captions[plan.ids([row])[0]] for row in uses]
        with _single_threaded_torch() if small else contextlib.nullcontext():
            states = encoder.encode_each(texts, step.max_tokens, step.batch_size)
        writer.write_text(shard, states)
        progress.advance("captions", len(texts))
    progress.finish("captions")


def _encode_images(
    step: ExtractFeaturesStep,
    vae: AutoencoderKL,
    manifest: Manifest,
    records: dict[str, ImageRecord],
    writer: FeatureWriter,
    progress: Progress,
) -> None:
    reader = ImageReader(manifest.folder)
    progress.start("images", len(records))
    progress.advance("images", len(records) - sum(len(shard.rows) for shard in writer.missing("image")))
    for shard in writer.missing("image"):
        assert shard.bucket is not None
        rows = [records[name] for name in writer.plan.ids(shard.rows)]
        batches = []
        for part, (mean, std) in zip(
            _parts(rows, step.batch_size),
            _moments(vae, reader, rows, shard.bucket, step.batch_size),
            strict=True,
        ):
            batches.append(([record.id for record in part], {"mean": mean, "std": std}))
            progress.advance("images", len(part))
        writer.write_images(shard, batches)
    progress.finish("images")


def _moments(
    vae: AutoencoderKL, reader: ImageReader, records: Sequence[ImageRecord], bucket: Bucket, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Moments of batches, in order; threads decode the next images meanwhile.

    On a CPU, batches of small pictures are encoded in those threads too, each with one thread of torch.
    """
    workers = min(8, os.cpu_count() or 1)
    in_threads = vae.device.type == "cpu" and batch_size * bucket[0] * bucket[1] <= _SMALL_BATCH

    def read(batch: Sequence[ImageRecord]) -> Tensor:
        images = [resize_and_crop(reader.read(record), *bucket) for record in batch]
        return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        return encode_moments(vae, pixels.to(vae.device).float() / 127.5 - 1, batch_size)

    batches = _parts(records, batch_size)
    if in_threads:
        with _single_threaded_torch():
            yield from _ahead(lambda batch: encode(read(batch)), batches, workers)
    else:
        yield from map(encode, _ahead(read, batches, workers))


def _ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """`map` in threads, in order, never more than `workers` results ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque[Future[Any]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _single_threaded_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loadable(source: str) -> str:
    """A source that sampling can load from any folder: a path made absolute, or a hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _report(
    step: ExtractFeaturesStep, errors: dict[str, float], uncaptioned: int, count: int, progress: Progress
) -> None:
    if uncaptioned:
        progress.say(f"{uncaptioned} of {count} images have no caption; they train on the empty one")
    if step.storage != "fp32":
        parts = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
        progress.say(f"relative rms error of {step.storage} storage: {parts}")
