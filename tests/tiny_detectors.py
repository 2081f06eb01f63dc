"""Tiny random OWLv2 and DPT models in Hugging Face's layout."""

from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTokenizer, DPTConfig, DPTForDepthEstimation, Owlv2Config, Owlv2ForObjectDetection
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil


def scrambled(model: nn.Module, scale: float) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def save_owlv2(folder: Path) -> Path:
    """An OWLv2 of one layer on 32 pixels with a vocabulary of letters."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = {word: number for number, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=words, merges=[]).save_pretrained(folder)
    text = {"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 24, "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    scrambled(Owlv2ForObjectDetection(config), 0.3).save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_dpt(folder: Path) -> Path:
    """A DPT of four layers on 96 pixels."""
    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=96,
        patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )  # fmt: skip
    scrambled(DPTForDepthEstimation(config), 0.1).save_pretrained(folder)
    return folder
