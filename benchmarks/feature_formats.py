"""Ways of keeping features on disk, each with a writer and a reader of padded batches, for feature_store.py.

All get the same samples and deliver the same: mean and std (b, 4, h, w), text (b, l, d) with zeros behind
each caption, mask (b, l); float32, ready to train on.
"""

import dataclasses
import importlib.util
import io
import json
import os
import sys
import tarfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.feature_plan import FeaturePlan, PlannedImage
from pixart_core.artifacts.feature_writer import FeatureWriter
from pixart_core.artifacts.features import FeatureStore

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
TAR_SAMPLES = 256


@dataclasses.dataclass
class Samples:
    """What the encoders gave: moments (n, 4, h, w) and states (n, 120, d), of which `lengths` are valid."""

    mean: Tensor
    std: Tensor
    states: Tensor
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, number: int) -> Tensor:
        return self.states[number, : self.lengths[number]]


class Format(Protocol):
    """One way of keeping features."""

    def write(self, folder: Path, samples: Samples) -> None: ...
    def open(self, folder: Path) -> None: ...
    def close(self) -> None: ...
    def batch(self, indices: Sequence[int], text: Tensor | None) -> Batch:
        """`text`: memory to use for the token states, if its size is right."""


class Single:
    """Formats that give one sample after the other; `sample` returns arrays (mean, std, tokens)."""

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raise NotImplementedError

    def batch(self, indices: Sequence[int], text: Tensor | None = None) -> Batch:
        rows = [tuple(map(torch.from_numpy, self.sample(index))) for index in indices]
        lengths = torch.tensor([len(tokens) for _, _, tokens in rows])
        shape = (len(rows), int(lengths.max()), rows[0][2].shape[1])
        if text is None or text.numel() < np.prod(shape):
            text = torch.empty(shape)
        text = text.view(-1)[: int(np.prod(shape))].view(shape)
        mean, std = torch.empty((2, len(rows), *rows[0][0].shape))
        for number, (one_mean, one_std, tokens) in enumerate(rows):
            mean[number], std[number] = one_mean, one_std
            text[number, : len(tokens)] = tokens
            text[number, len(tokens) :] = 0
        return mean, std, text, torch.arange(shape[1]) < lengths[:, None]


class Reference(Single):
    """PixArt's own: a compressed fp32 npz of all 120 states and their mask, an npy of the moments."""

    def write(self, folder: Path, samples: Samples) -> None:
        for number, length in enumerate(samples.lengths):
            mask = (np.arange(samples.states.shape[1]) < length)[None].astype(np.int64)
            states = samples.states[number][None].numpy()
            np.savez_compressed(folder / f"{number}.npz", caption_feature=states, attention_mask=mask)
            moments = torch.cat([samples.mean[number], samples.std[number]])
            np.save(folder / f"{number}.npy", moments.numpy())

    def open(self, folder: Path) -> None:
        self.folder = folder

    def close(self) -> None: ...

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with np.load(self.folder / f"{index}.npz") as file:
            tokens = file["caption_feature"][0][: int(file["attention_mask"].sum())]
        mean, std = np.split(np.load(self.folder / f"{index}.npy"), 2)
        return mean, std, tokens


class Npz(Single):
    """One npz a sample, fp16, valid tokens only, not compressed."""

    def write(self, folder: Path, samples: Samples) -> None:
        for number in range(len(samples)):
            np.savez(folder / f"{number}.npz", **halves(samples, number))

    def open(self, folder: Path) -> None:
        self.folder = folder

    def close(self) -> None: ...

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with np.load(self.folder / f"{index}.npz") as file:
            return file["mean"], file["std"], file["text"]


class WebDataset(Single):
    """Tars of npy members, fp16, with an index of where each sample lies: read in one go, then parsed."""

    def write(self, folder: Path, samples: Samples) -> None:
        index = []
        for start in range(0, len(samples), TAR_SAMPLES):
            name = f"{start // TAR_SAMPLES:05d}.tar"
            with tarfile.open(folder / name, "w") as tar:
                for number in range(start, min(start + TAR_SAMPLES, len(samples))):
                    places = []
                    for part, array in halves(samples, number).items():
                        content = io.BytesIO()
                        np.save(content, array)
                        info = tarfile.TarInfo(f"{number:08d}.{part}.npy")
                        info.size = content.tell()
                        content.seek(0)
                        places.append((tar.offset + 512, info.size))
                        tar.addfile(info, content)
                    index.append((name, places))
        (folder / "index.json").write_text(json.dumps(index))

    def open(self, folder: Path) -> None:
        self.index = json.loads((folder / "index.json").read_text())
        self.handles = {name: os.open(folder / name, os.O_RDONLY) for name, _ in self.index}
        # Fresh memory for every sample would cost more than reading it.
        self.buffers = [bytearray(2**20) for _ in range(64)]
        self.count = 0

    def close(self) -> None:
        for handle in self.handles.values():
            os.close(handle)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        name, places = self.index[index]
        start, end = places[0][0], sum(places[-1])
        data = self.buffers[self.count % len(self.buffers)]
        self.count += 1
        os.preadv(self.handles[name], [memoryview(data)[: end - start]], start)
        mean, std, text = (parse_npy(data, offset - start) for offset, _ in places)
        return mean, std, text


class Arrow(Single):
    """A Hugging Face data set: one Arrow file, memory-mapped; fp16 as bytes, looked at without a copy."""

    def write(self, folder: Path, samples: Samples) -> None:
        from datasets import Dataset, Features, Value, disable_progress_bars

        disable_progress_bars()
        parts = ("mean", "std", "text")

        def rows() -> Any:
            for number in range(len(samples)):
                yield {part: array.tobytes() for part, array in halves(samples, number).items()}

        features = Features({part: Value("large_binary") for part in parts})
        cache = str(folder / "arrow")
        Dataset.from_generator(rows, features=features, cache_dir=cache, fingerprint="0" * 16)
        shape = [list(samples.mean.shape[1:]), samples.states.shape[2]]
        (folder / "shape.json").write_text(json.dumps(shape))

    def open(self, folder: Path) -> None:
        from datasets import Dataset

        self.shape, self.width = json.loads((folder / "shape.json").read_text())
        (path,) = (folder / "arrow").rglob("*.arrow")
        self.data = Dataset.from_file(str(path)).with_format("arrow")

    def close(self) -> None:
        del self.data

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = self.data[index]
        parts = ("mean", "std", "text")
        mean, std, text = (np.frombuffer(row[part][0].as_buffer(), np.float16) for part in parts)
        return mean.reshape(self.shape), std.reshape(self.shape), text.reshape(-1, self.width)


class MDS(Single):
    """MosaicML's shards (`pip install --no-deps mosaicml-streaming`), fp16, read by its own reader."""

    def write(self, folder: Path, samples: Samples) -> None:
        shape = ",".join(map(str, samples.mean.shape[1:]))
        columns = dict.fromkeys(("mean", "std"), f"ndarray:float16:{shape}")
        writer = mosaic().MDSWriter(
            out=str(folder), columns=columns | {"text": "ndarray:float16"}, compression=None, hashes=None
        )
        with writer:
            for number in range(len(samples)):
                writer.write(halves(samples, number))

    def open(self, folder: Path) -> None:
        from streaming.base.format import reader_from_json

        shards = json.loads((folder / "index.json").read_text())["shards"]
        self.shards = [reader_from_json(str(folder), None, shard) for shard in shards]
        self.starts = np.cumsum([0, *(shard.samples for shard in self.shards)])

    def close(self) -> None: ...

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        number = int(np.searchsorted(self.starts, index, "right")) - 1
        row = self.shards[number][index - int(self.starts[number])]
        return row["mean"], row["std"], row["text"]


def mosaic() -> Any:
    """The module `streaming`; None if it is not installed.

    It imports torchvision, whose wheels fight the CPU build of torch, for image columns that are not used
    here: empty modules take its place.
    """
    if "streaming" in sys.modules or importlib.util.find_spec("streaming") is None:
        return sys.modules.get("streaming")
    importlib.import_module("transformers")  # looks for torchvision itself, and must not find the empty one
    parts = ("", ".transforms", ".transforms.functional", ".datasets")
    empty = {f"torchvision{part}": types.ModuleType(f"torchvision{part}") for part in parts}
    for module in empty.values():
        module.__dict__.update(__path__=[], to_tensor=None, VisionDataset=object)
    sys.modules |= empty
    try:
        return importlib.import_module("streaming")
    finally:
        for name in empty:
            del sys.modules[name]


class PixArtStore:
    """This project's feature store."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage

    def write(self, folder: Path, samples: Samples) -> None:
        bucket = tuple(8 * side for side in samples.mean.shape[2:])
        plan = FeaturePlan.open(folder, {}, tables={bucket[0]: [bucket]}, shard_size=2048)
        plan.extend(
            PlannedImage(f"{number:016x}", f"caption {number}", None, 512, 512, (bucket,))
            for number in range(len(samples))
        )
        writer = FeatureWriter(folder, plan, self.storage, first=True)
        for shard in writer.missing("text"):
            # Caption 0 of a store is the empty one.
            writer.write_text(shard, (samples.tokens(max(row - 1, 0)) for row in shard.rows))
        for shard in writer.missing("image"):
            ids = plan.ids(shard.rows)
            part = slice(int(shard.rows[0]), int(shard.rows[-1]) + 1)
            writer.write_images(shard, [(ids, {"mean": samples.mean[part], "std": samples.std[part]})])
        assert writer.finish(Card("features", {}, {}, {}))

    def open(self, folder: Path) -> None:
        self.store = FeatureStore(folder)
        (self.bucket,) = self.store.buckets

    def close(self) -> None:
        del self.store

    def batch(self, indices: Sequence[int], text: Tensor | None = None) -> Batch:
        del text  # it takes back its own memory
        batch = self.store.batch(self.bucket, indices)
        return batch.mean, batch.std, batch.text, batch.mask


def halves(samples: Samples, number: int) -> dict[str, np.ndarray]:
    """The arrays of a sample in fp16; valid tokens only."""
    parts = {"mean": samples.mean[number], "std": samples.std[number], "text": samples.tokens(number)}
    return {name: value.half().numpy() for name, value in parts.items()}


def parse_npy(data: bytearray, start: int) -> np.ndarray:
    """The array of an npy file that begins at `start` of `data`, without a copy."""
    stream = io.BytesIO(memoryview(data)[start : start + 128])
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    count = int(np.prod(shape))
    return np.frombuffer(data, dtype, count, start + stream.tell()).reshape(shape)
