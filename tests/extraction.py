"""Small data and encoders for tests of extraction."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from PIL import Image

from pixart_core.artifacts.captions import CAPTIONS, CaptionRow, row_line
from pixart_core.artifacts.card import Card
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.recipe.features import ExtractFeaturesStep

SIZES = ((32, 32), (24, 48), (48, 24))


def write_pictures(folder: Path, numbers: range) -> Path:
    """Pictures of three sizes with captions (7 distinct ones and an empty one) and a class each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        height, width = SIZES[number % 3]
        pixels = np.random.default_rng(number).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{number:03d}.png")
        caption = "" if number == 5 else f"picture of kind {number % 7} {'very ' * (number % 7)}small"
        (folder / f"{number:03d}.txt").write_text(caption)
        (folder / f"{number:03d}.json").write_text(json.dumps({"kind": f"k{number % 2}"}))
    return folder


def write_encoders(folder: Path, seed: int = 0) -> Path:
    """A VAE of diffusers with random weights (4 channels, 2 pixels per latent) and a T5 of width 16."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
        )
    vae.save_pretrained(folder / "vae")
    tokenizer = build_tokenizer([f"picture of kind {number} very small" for number in range(7)])
    tokenizer.save_pretrained(folder / "tokenizer")
    build_tiny_t5(len(tokenizer), 16, 2, 2, seed).save_pretrained(folder / "text_encoder")
    return folder


def make_step(data: Path, encoders: Path, **options: object) -> ExtractFeaturesStep:
    """Options for `write_pictures`: its sizes as buckets, small shards."""
    chosen = {"aspect_buckets": SIZES, "storage": "fp32", "shard_size": 8, "batch_size": 3, "device": "cpu"}
    sources = {"data": str(data), "vae": str(encoders), "text_encoder": str(encoders)}
    return ExtractFeaturesStep.model_validate(sources | chosen | options)


def write_captions(folder: Path, rows: list[CaptionRow]) -> Path:
    """A finished folder of captions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CAPTIONS).write_text("".join(map(row_line, rows)))
    Card("captions", {"rows": len(rows)}, {}).write(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
