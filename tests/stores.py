"""A tiny feature store for tests of training: 2 classes, 3 latent channels, captions of width 8."""

from pathlib import Path

import torch

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.feature_writer import FeatureWriter, ImageRows

DETAILS = {
    "latent_channels": 3,
    "caption_channels": 8,
    "max_tokens": 120,
    "label_names": ["a", "b"],
    "vae": {"name": "vae", "source": "vae", "scaling_factor": 1.0, "shift_factor": 0.0, "downsampling": 2},
    "text_encoder": {"name": "text", "source": "text"},
}


def write_tiny_store(
    folder: Path, buckets: dict[tuple[int, int], int] | None = None, unlabelled: int = 0
) -> Path:
    """Write a store of random features with `buckets` (pixels: count); captions vary in length; the first
    `unlabelled` samples of each bucket have no class."""
    generator = torch.Generator().manual_seed(0)
    writer = FeatureWriter(folder, "plan", "fp32")
    lengths = [1, 3, 5, 2, 4]
    writer.write_text("text-00000.safetensors", [torch.randn(n, 8, generator=generator) for n in lengths])
    for (height, width), count in (buckets or {(16, 16): 10, (8, 24): 7}).items():
        numbers = torch.arange(count)
        shape = (count, 3, height // 2, width // 2)
        writer.write_images(
            f"image-{height}x{width}-00000.safetensors",
            (height, width),
            ImageRows(
                ids=[f"{height}x{width}-{n}" for n in range(count)],
                mean=torch.randn(shape, generator=generator),
                std=torch.rand(shape, generator=generator),
                labels=torch.where(numbers < unlabelled, -1, numbers % 2),
                sizes=torch.tensor([[height, width]]).expand(count, 2),
                captions=1 + numbers % 4,
            ),
        )
    writer.finish(Card("features", {}, {}, DETAILS))
    return folder
