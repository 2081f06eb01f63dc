"""Write the paper's pipeline at its true size, with random weights.

    python benchmarks/paper_pipeline.py FOLDER

T5-XXL's encoder in bf16 and shards, XL/2 for 512 px and Stable Diffusion's VAE in fp32: 12.3 GB. At most one
shard of the text encoder is in memory at a time. `--tiny` is for trying the programs that use it.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from pixart_core.encoders.tiny_t5 import build_tokenizer
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import save_transformer
from pixart_core.sampling.schedulers import build_scheduler

PROMPT = "a small cactus with a happy face in the Sahara desert"
SHARD_BYTES = 10**9
XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64, "vocab_size": 32128}
TINY_T5 = XXL | {"d_model": 256, "d_ff": 512, "num_layers": 4, "num_heads": 4}
XL = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28}
CLASSES = {
    "_class_name": "PixArtAlphaPipeline",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def main() -> None:
    """Write every part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    folder, tiny = arguments.folder, arguments.tiny
    torch.manual_seed(0)
    write_t5(folder / "text_encoder", TINY_T5 if tiny else XXL)
    build_tokenizer([PROMPT]).save_pretrained(folder / "tokenizer")
    write_transformer(folder / "transformer", tiny=tiny)
    write_vae(folder / "vae", tiny=tiny)
    build_scheduler("dpm-solver", "epsilon").save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(CLASSES, indent=2))


def write_t5(folder: Path, sizes: dict[str, int]) -> None:
    """One shard after the other."""
    config = T5Config(
        **sizes, feed_forward_proj="gated-gelu", dense_act_fn="gelu_new", dtype="bfloat16",
        is_encoder_decoder=False, use_cache=False, architectures=["T5EncoderModel"],
    )  # fmt: skip
    with torch.device("meta"):
        empty = T5EncoderModel(config).state_dict()
    empty.pop("encoder.embed_tokens.weight")  # the same as shared.weight
    config.save_pretrained(folder)
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in empty.items():
        if shards[-1] and sum(2 * t.numel() for t in shards[-1].values()) + 2 * tensor.numel() > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weights = {name: _t5_weight(name, tensor.shape, sizes) for name, tensor in shard.items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    size = sum(2 * tensor.numel() for tensor in empty.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _t5_weight(name: str, shape: torch.Size, sizes: dict[str, int]) -> Tensor:
    """As transformers draws T5's, so that states are of usual size."""
    if "layer_norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    std = 1.0 if name == "shared.weight" else shape[-1] ** -0.5
    if ".q." in name:  # T5 does not divide by the root of the heads' width
        std = (sizes["d_model"] * sizes["d_kv"]) ** -0.5
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=std)


def write_transformer(folder: Path, *, tiny: bool) -> None:
    """XL/2 for 512 px, or a tiny one."""
    shape = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2} if tiny else XL
    config = TransformerConfig(
        **shape,
        in_channels=4,
        out_channels=8,
        sample_size=64,
        caption_channels=(TINY_T5 if tiny else XXL)["d_model"],
    )
    with torch.device("meta"):
        empty = build_transformer(config).state_dict()
    weights = {name: torch.empty(tensor.shape).normal_(std=0.02) for name, tensor in empty.items()}
    save_transformer(config, weights, folder)


def write_vae(folder: Path, *, tiny: bool) -> None:
    """Stable Diffusion's, or a tiny one."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4 if tiny else (128, 256, 512, 512),
        layers_per_block=1 if tiny else 2,
        latent_channels=4,
        sample_size=256,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder)


if __name__ == "__main__":
    main()
