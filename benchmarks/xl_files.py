"""Files of the real size: PixArt and DiT XL/2 with random weights in the layouts that are published.

python benchmarks/xl_files.py FOLDER
"""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from pixart_core.conversion.official import position_table, to_original
from pixart_core.encoders.tiny_t5 import build_tokenizer
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import save_transformer

DIT = TransformerConfig(conditioning="class")
PIXART = TransformerConfig(sample_size=64)


def build_sources(folder: Path) -> None:
    """`dit.pt`, `dit-fp16.pt`, `pixart.pth` (with EMA); the folders `ours` (fp32), `fp16`, `encoders`."""
    torch.manual_seed(0)
    dit = to_original("dit", random_weights(DIT)) | {"pos_embed": positions(DIT)}
    torch.save(dit, folder / "dit.pt")
    torch.save({name: tensor.half() for name, tensor in dit.items()}, folder / "dit-fp16.pt")
    del dit
    ours = random_weights(PIXART)
    save_transformer(PIXART, ours, folder / "ours")
    save_transformer(PIXART, ours, folder / "fp16", torch.float16)
    extra = {"pos_embed": positions(PIXART), "y_embedder.y_embedding": torch.randn(120, 4096)}
    official = to_original("pixart", ours) | extra
    del ours
    ema = {name: tensor.clone() for name, tensor in official.items()}
    torch.save({"state_dict": official, "state_dict_ema": ema, "epoch": 1}, folder / "pixart.pth")
    build_encoders(folder / "encoders")


def random_weights(config: TransformerConfig) -> dict[str, Tensor]:
    """Numbers of the usual size under our names."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_transformer(config).state_dict().items()}
    return {name: 0.02 * torch.randn(shape) for name, shape in shapes.items()}


def positions(config: TransformerConfig) -> Tensor:
    """The `pos_embed` of an original file."""
    return position_table(config.width, config.sample_size, config.patch_size, config.interpolation_scale)


def build_encoders(folder: Path) -> None:
    """An 8x VAE of four latent channels and a T5 encoder of tokens as wide as T5-XXL's, both tiny."""
    AutoencoderKL(
        latent_channels=4,
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")
    tokenizer = build_tokenizer(["a red circle"])
    size = {"d_model": 4096, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **size)).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")


if __name__ == "__main__":
    build_sources(Path(sys.argv[1]))
