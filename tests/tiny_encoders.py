"""A pipeline's VAE, text encoder and tokenizer, tiny and with random weights."""

from pathlib import Path

import original_layouts as original
from diffusers import AutoencoderKL

from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer


def write_tiny_encoders(folder: Path) -> Path:
    """Of four latent channels, two pixels a latent, and captions as wide as `original_layouts` has them."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(latent_channels=4, block_out_channels=(32, 32), **kinds).save_pretrained(folder / "vae")
    tokenizer = build_tokenizer(["a red circle"])
    build_tiny_t5(len(tokenizer), width=original.CAPTION).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder
