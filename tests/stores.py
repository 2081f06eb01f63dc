"""Tiny feature stores for tests: 2 classes, 3 latent channels, captions of width 8."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.feature_packing import Storage
from pixart_core.artifacts.feature_plan import Bucket, FeaturePlan, PlannedImage, PlannedShard
from pixart_core.artifacts.feature_writer import FeatureWriter, ImageBatch

DETAILS = {
    "latent_channels": 3,
    "caption_channels": 8,
    "max_tokens": 120,
    "label_names": ["a", "b"],
    "vae": {"name": "vae", "source": "vae", "scaling_factor": 1.0, "shift_factor": 0.0, "downsampling": 2},
    "text_encoder": {"name": "text", "source": "text"},
}
CARD = Card("features", {}, {}, DETAILS)


def write_tiny_store(
    folder: Path, buckets: dict[tuple[int, int], int] | None = None, unlabelled: int = 0, flip: bool = False
) -> Path:
    """Write a store of random features with `buckets` (pixels: count); captions vary in length; the first
    `unlabelled` samples of each bucket have no class."""
    generator = torch.Generator().manual_seed(0)
    sizes = buckets or {(16, 16): 10, (8, 24): 7}
    plan = FeaturePlan.open(folder, {"flip": flip}, tables={16: list(sizes)}, shard_size=100)
    plan.extend(
        PlannedImage(
            id=f"{height}x{width}-{number}",
            caption=f"caption {number % 4}",
            label=None if number < unlabelled else number % 2,
            height=height,
            width=width,
            buckets=((height, width),),
        )
        for (height, width), count in sizes.items()
        for number in range(count)
    )
    writer = FeatureWriter(folder, plan, "fp32", first=True)
    tokens = [torch.randn(length, 8, generator=generator) for length in (1, 3, 5, 2, 4)]
    for shard in writer.missing("text"):
        writer.write_text(shard, tokens[: len(shard.rows)])
    moments = {bucket: _random_moments(bucket, count, generator, flip) for bucket, count in sizes.items()}
    for shard in writer.missing("image"):
        assert shard.bucket is not None
        writer.write_images(shard, [(plan.ids(shard.rows), moments[shard.bucket])])
    assert writer.finish(CARD)
    return folder


def _random_moments(
    bucket: Bucket, count: int, generator: torch.Generator, flip: bool
) -> Mapping[str, Tensor]:
    shape = (count, 3, bucket[0] // 2, bucket[1] // 2)
    moments = {"mean": torch.randn(shape, generator=generator), "std": torch.rand(shape, generator=generator)}
    if flip:
        moments |= {f"{name}_flipped": value.flip(-1) for name, value in moments.items()}
    return moments


class Source:
    """Data whose features follow from ids and captions: what any shard must hold is known.

    Attributes:
        images: all that the store shall hold.
        tables: buckets of each resolution; latents are half as large as pictures.
        flip: whether mirror images are stored; they are made up, not mirrored.
    """

    def __init__(
        self,
        images: Iterable[PlannedImage],
        tables: Mapping[int, Sequence[Bucket]],
        *,
        shard_size: int = 3,
        storage: Storage = "fp32",
        flip: bool = False,
    ) -> None:
        self.images = list(images)
        self.tables = tables
        self.shard_size = shard_size
        self.storage = storage
        self.flip = flip

    @staticmethod
    def tokens(caption: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(caption.encode("utf-8", "surrogatepass")))
        return torch.randn(1 + len(caption) % 5, 8, generator=generator)

    def moments(self, name: str, bucket: Bucket) -> dict[str, Tensor]:
        """(3, h, w) each; half of the images have no noise."""
        seed = zlib.crc32(f"{name} {bucket}".encode())
        generator = torch.Generator().manual_seed(seed)
        parts = ("mean", "std", "mean_flipped", "std_flipped")[: 4 if self.flip else 2]
        shape = (3, bucket[0] // 2, bucket[1] // 2)
        drawn = {part: torch.rand(shape, generator=generator) for part in parts}
        return {part: value * (part[0] == "m" or seed % 2) for part, value in drawn.items()}

    def open(self, folder: Path, *, first: bool = True) -> FeatureWriter:
        """Plan (the first process) and open the writer."""
        settings = {"storage": self.storage, "flip": self.flip}
        plan = FeaturePlan.open(folder, settings, tables=self.tables, shard_size=self.shard_size)
        if first:
            plan.extend(self.images)
        return FeatureWriter(folder, plan, self.storage, first=first)

    def write(self, writer: FeatureWriter, shard: PlannedShard) -> None:
        """Make one shard."""
        if shard.kind == "text":
            captions = {image.id: image.caption for image in self.images}
            rows = writer.plan.first_uses(shard.rows).tolist()
            texts = ["" if row < 0 else captions[writer.plan.ids([row])[0]] for row in rows]
            writer.write_text(shard, map(self.tokens, texts))
        else:
            writer.write_images(shard, map(self._batch(shard), _pairs(writer.plan.ids(shard.rows))))

    def extract(self, folder: Path) -> FeatureWriter:
        """Plan and write all that is missing, then the card."""
        writer = self.open(folder)
        for shard in (*writer.missing("text"), *writer.missing("image")):
            self.write(writer, shard)
        assert writer.finish(CARD)
        return writer

    def _batch(self, shard: PlannedShard) -> Callable[[Sequence[str]], ImageBatch]:
        def batch(ids: Sequence[str]) -> ImageBatch:
            assert shard.bucket is not None
            moments = [self.moments(name, shard.bucket) for name in ids]
            return ids, {part: torch.stack([one[part] for one in moments]) for part in moments[0]}

        return batch


def _pairs(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[at : at + 2] for at in range(0, len(ids), 2)]


def small_source(count: int = 14, **options: object) -> Source:
    """Two resolutions of two shapes; captions come several times, some are empty."""
    tables = {16: [(16, 16), (8, 24)], 32: [(32, 32), (16, 48)]}
    images = [
        PlannedImage(
            id=f"id-{number}",
            caption=f"text {number % 8}" if number % 8 else "",
            label=None if number % 5 == 0 else number % 2,
            height=10 + number,
            width=20 + number,
            buckets=tuple(table[number % 3 == 0] for table in tables.values()),
            digest=f"{number + 1:016x}",
        )
        for number in range(count)
    ]
    return Source(images, tables, **options)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of every file in `folder`."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
