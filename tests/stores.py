"""Tiny feature stores for tests: 2 classes, 3 latent channels, captions of width 8."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.feature_plan import FeaturePlan, PlannedImage
from pixart_core.artifacts.feature_writer import FeatureWriter

DETAILS = {
    "latent_channels": 3,
    "caption_channels": 8,
    "max_tokens": 120,
    "label_names": ["a", "b"],
    "vae": {"name": "vae", "source": "vae", "scaling_factor": 1.0, "shift_factor": 0.0, "downsampling": 2},
    "text_encoder": {"name": "text", "source": "text"},
}


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
    moments = {bucket: _moments(bucket, count, generator, flip) for bucket, count in sizes.items()}
    for shard in writer.missing("image"):
        assert shard.bucket is not None
        writer.write_images(shard, [(plan.ids(shard.rows), moments[shard.bucket])])
    assert writer.finish(Card("features", {}, {}, DETAILS))
    return folder


def _moments(
    bucket: tuple[int, int], count: int, generator: torch.Generator, flip: bool
) -> Mapping[str, Tensor]:
    shape = (count, 3, bucket[0] // 2, bucket[1] // 2)
    moments = {"mean": torch.randn(shape, generator=generator), "std": torch.rand(shape, generator=generator)}
    if flip:
        moments |= {f"{name}_flipped": value.flip(-1) for name, value in moments.items()}
    return moments
