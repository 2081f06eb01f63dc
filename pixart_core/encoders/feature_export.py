"""`pixart extract-features --export`: a feature store as WebDataset archives or a Hugging Face data set."""

import contextlib
import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixart_core.artifacts.card import Card, fingerprint
from pixart_core.artifacts.feature_index import read_index
from pixart_core.artifacts.feature_plan import Bucket, FeaturePlan
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.publish import staged_file, write_bytes, write_json
from pixart_core.encoders.array_files import npy_bytes
from pixart_core.encoders.feature_exchange import EMPTY_CAPTION, EXPORT, FLIPPED, KIND, MOMENTS
from pixart_core.encoders.feature_tables import write_arrow, write_dataset_files
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.features import ExportFormat

Row = tuple[dict[str, Any], dict[str, np.ndarray]]  # (what the sample's JSON says, its arrays)

_BATCH = 32  # samples in memory
_KEY = re.compile(r"[A-Za-z0-9_-]+")  # a WebDataset key ends at the first dot


@dataclasses.dataclass(frozen=True)
class _Part:
    """One file of an export: samples `start` to `stop` of a bucket at a resolution."""

    resolution: int
    bucket: Bucket
    number: int
    start: int
    stop: int

    @property
    def archive(self) -> str:
        return f"{self.bucket[0]}x{self.bucket[1]}-{self.number:05d}.tar"


def export_features(folder: Path, to: ExportFormat, output: Path, progress: Progress) -> dict[str, Any]:
    """Write the store in `folder` as `to` into `output`; see `feature_exchange` for the layout.

    Killed and run again, it goes on after the last whole file.

    Returns:
        output, format, samples (images times resolutions) and files.

    Raises:
        UserError: no finished store, or `output` holds something else.
        PixartError: the disk is full.
    """
    plan = FeaturePlan.load(folder) if (folder / "plan-00000.safetensors").exists() else None
    resolutions = [None] if plan is None else list(plan.tables)
    stores = [FeatureStore(folder, resolution) for resolution in resolutions]  # says what is wrong
    assert plan is not None
    details = _details(plan, stores[0], to)
    _begin(output, stores[0], details)
    parts = list(_parts(stores, plan.shard_size))
    progress.start("export", sum(part.stop - part.start for part in parts))
    for number, part in enumerate(parts):
        store = next(store for store in stores if store.resolution == part.resolution)
        name = part.archive if to == "webdataset" else f"data-{number:05d}-of-{len(parts):05d}.arrow"
        if not (output / name).exists():
            with staged_file(output / name) as partial:
                if to == "webdataset":
                    _write_tar(partial, _rows(plan, store, part))
                else:
                    write_arrow(partial, _rows(plan, store, part), details)
        progress.advance("export", part.stop - part.start)
    progress.finish("export")
    if to == "hf":
        write_dataset_files(output, len(parts), details)
    inputs = {"store": stores[0].card.fingerprint}
    Card(KIND, {"command": "extract-features --export", "to": to}, inputs, details).write(output)
    samples = sum(len(store) for store in stores)
    return {"output": str(output), "format": to, "samples": samples, "files": len(parts)}


def _details(plan: FeaturePlan, store: FeatureStore, to: ExportFormat) -> dict[str, Any]:
    local = ("sources", "error")
    kept = {name: value for name, value in store.details.items() if name not in local}
    return kept | {
        "format": to,
        "storage": plan.settings["storage"],
        "horizontal_flip": store.flips,
        "tables": {str(resolution): list(map(list, table)) for resolution, table in plan.tables.items()},
        "shard_size": plan.shard_size,
    }


def _begin(output: Path, store: FeatureStore, details: Mapping[str, Any]) -> None:
    """Note what is exported, or refuse to go on with another export.

    Raises:
        UserError: `output` holds something else.
    """
    entries = read_index(store.folder).entries
    hashes = {name: entry["xxh3_128"] for name, entry in entries.items()}
    now = json.loads(json.dumps({"of": fingerprint(hashes), "details": details}))
    marker = output / EXPORT
    if marker.exists():
        try:
            before = json.loads(marker.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{marker} is damaged; choose another output") from error
        if before != now:
            raise UserError(f"{output} holds the export of another store or format; choose another output")
        for partial in output.glob(".*.partial"):  # of a killed run
            partial.unlink()
        return
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; choose another output")
    write_json(marker, now)
    with contextlib.suppress(KeyError):
        write_bytes(output / EMPTY_CAPTION, npy_bytes(_numbers(store.empty_caption().numpy(), details)))


def _parts(stores: list[FeatureStore], size: int) -> Iterator[_Part]:
    for store in stores:
        for bucket, count in store.buckets.items():
            for number, start in enumerate(range(0, count, size)):
                yield _Part(store.resolution, bucket, number, start, min(start + size, count))


def _rows(plan: FeaturePlan, store: FeatureStore, part: _Part) -> Iterator[Row]:
    planned = plan.bucket_rows(part.resolution)[part.bucket]
    storage = {"storage": plan.settings["storage"]}
    for start in range(part.start, part.stop, _BATCH):
        numbers = range(start, min(start + _BATCH, part.stop))
        rows = planned[numbers.start : numbers.stop]
        batch = store.batch(part.bucket, numbers)
        mirrored = store.batch(part.bucket, numbers, [True] * len(numbers)) if store.flips else None
        captions = plan.column("caption", rows).tolist()
        for place, name in enumerate(batch.ids):
            label = int(batch.labels[place])
            height, width = batch.sizes[place].tolist()
            told = {
                "id": name,
                "label": None if label < 0 else label,
                "height": height,
                "width": width,
                "resolution": part.resolution,
                "bucket": list(part.bucket),
                "caption": captions[place],
                "row": int(rows[place]),
            }
            arrays = dict(zip(MOMENTS, (batch.mean[place], batch.std[place]), strict=True))
            if mirrored is not None:
                arrays |= zip(FLIPPED, (mirrored.mean[place], mirrored.std[place]), strict=True)
            arrays["text"] = batch.text[place, batch.mask[place]]
            yield told, {kind: _numbers(value.numpy(), storage) for kind, value in arrays.items()}


def _numbers(values: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    return values.astype(np.float16) if details["storage"] == "fp16" else values


def _write_tar(path: Path, rows: Iterator[Row]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for told, arrays in rows:
            # An id that is no WebDataset key is in the JSON alone.
            key = told["id"] if _KEY.fullmatch(told["id"]) else f"row-{told['row']:09d}"
            _add(archive, f"{key}.json", json.dumps(told, sort_keys=True).encode())
            for kind, value in arrays.items():
                _add(archive, f"{key}.{kind}.npy", npy_bytes(value))


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
