"""Whose weights these are, told from their names alone."""

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

from pixart_core.conversion.official import original_kind

Format = Literal[
    "official PixArt",
    "original DiT",
    "official PixArt ControlNet",
    "diffusers",
    "LoRA adapter",
    "another model",
]
CONTROLNET_BASE, CONTROLNET_COPIES = "base_model.", "controlnet."
NO_BASE = "without the base model that they belong to: there is nothing to convert"
_DIFFUSERS = ("pos_embed.proj.", "adaln_single.", "caption_projection.", ".norm1.emb.", "proj_out_2.")
_LORA = ("lora_A", "lora_B", "lora_down", "lora_up", "lora.down", "lora.up", "lora_embedding")
# A part of a name that only this model has. First match counts.
_OTHER_MODELS = (
    ("SelfAttention.relative_attention_bias", "a T5 text encoder"),
    ("text_model.encoder.layers.", "a CLIP model"),
    ("quant_conv.", "an autoencoder (VAE)"),
    ("decoder.conv_in.", "an autoencoder (VAE)"),
    ("double_blocks.", "a Flux transformer"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer"),
    ("input_blocks.", "a Stable Diffusion U-Net"),
    ("down_blocks.", "a U-Net"),
)


def recognise(names: Mapping[str, object]) -> Format:
    """The layout that `names` are of."""
    if any(name.startswith(CONTROLNET_COPIES) for name in names):
        return "official PixArt ControlNet"
    if is_lora(names):
        return "LoRA adapter"
    kind = original_kind(names)
    if kind is not None:
        return "official PixArt" if kind == "pixart" else "original DiT"
    return "diffusers" if _is_diffusers(names) else "another model"


def _is_diffusers(names: Iterable[str]) -> bool:
    """Blocks of PixArt or DiT in diffusers' names, and something around them that only these have."""
    known = list(names)
    blocks = any(name.startswith("transformer_blocks.") and ".attn1." in name for name in known)
    return blocks and any(mark in name for name in known for mark in _DIFFUSERS)


def is_lora(names: Iterable[str]) -> bool:
    """Whether any of `names` is a low-rank update of peft, diffusers or kohya."""
    return any(mark in name for name in names for mark in _LORA)


def other_model(names: Iterable[str]) -> str | None:
    """What `names` look like, as words for a message; None: unknown."""
    known = list(names)
    return next((what for mark, what in _OTHER_MODELS if any(mark in name for name in known)), None)


def base_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frozen model inside a ControlNet, under its own names."""
    return {
        name.removeprefix(CONTROLNET_BASE): tensor
        for name, tensor in weights.items()
        if name.startswith(CONTROLNET_BASE)
    }


def copied_blocks(names: Iterable[str]) -> int:
    """Blocks that a ControlNet copied: how many different numbers `controlnet.{j}.` has."""
    numbers = {name.split(".")[1] for name in names if name.startswith(CONTROLNET_COPIES)}
    return sum(number.isdecimal() for number in numbers)
