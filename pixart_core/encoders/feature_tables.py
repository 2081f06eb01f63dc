"""Features as the Arrow files of a Hugging Face `datasets.Dataset`, written a few rows at a time."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from pixart_core.artifacts.publish import write_json
from pixart_core.encoders.feature_exchange import moment_names

_BATCH = 32


def dataset_features(details: Mapping[str, Any]) -> datasets.Features:
    """The typed columns of an export with these details."""
    number = datasets.Value("float16" if details["storage"] == "fp16" else "float32")
    names = details.get("label_names") or []
    whole = ("height", "width", "resolution", "bucket_height", "bucket_width")
    arrays = [*moment_names(details["horizontal_flip"]), "text"]
    return datasets.Features(
        {"id": datasets.Value("string")}
        | {"label": datasets.ClassLabel(names=names) if names else datasets.Value("int64")}
        | {name: datasets.Value("int32") for name in whole}
        | {"caption": datasets.Value("int64"), "row": datasets.Value("int64")}
        | {name: datasets.List(number) for name in arrays}
        | {
            "latent_shape": datasets.List(datasets.Value("int32"), length=3),
            "text_shape": datasets.List(datasets.Value("int32"), length=2),
        }
    )


def write_arrow(
    path: Path, rows: Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]], details: Mapping[str, Any]
) -> None:
    """Write `rows` as one file of a data set."""
    schema = dataset_features(details).arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        while batch := list(itertools.islice(rows, _BATCH)):
            stream.write_batch(_record_batch(batch, schema))


def _record_batch(
    rows: list[tuple[dict[str, Any], dict[str, np.ndarray]]], schema: pa.Schema
) -> pa.RecordBatch:
    columns: dict[str, Any] = {}
    for name in ("id", "label", "height", "width", "resolution", "caption", "row"):
        columns[name] = [told[name] for told, _ in rows]
    columns["bucket_height"] = [told["bucket"][0] for told, _ in rows]
    columns["bucket_width"] = [told["bucket"][1] for told, _ in rows]
    columns["latent_shape"] = [list(arrays["mean"].shape) for _, arrays in rows]
    columns["text_shape"] = [list(arrays["text"].shape) for _, arrays in rows]
    for name in rows[0][1]:
        flat = [arrays[name].reshape(-1) for _, arrays in rows]
        offsets = np.array([0, *map(len, flat)]).cumsum().astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(flat)))
    made = {
        name: value if isinstance(value, pa.Array) else pa.array(value, schema.field(name).type)
        for name, value in columns.items()
    }
    return pa.RecordBatch.from_arrays([made[name] for name in schema.names], schema=schema)


def write_dataset_files(folder: Path, files: int, details: Mapping[str, Any]) -> None:
    """What `datasets.load_from_disk` reads beside the Arrow files."""
    datasets.DatasetInfo(features=dataset_features(details)).write_to_directory(str(folder))
    names = [{"filename": f"data-{number:05d}-of-{files:05d}.arrow"} for number in range(files)]
    state: dict[str, Any] = {
        "_data_files": names,
        "_fingerprint": "0" * 16,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
