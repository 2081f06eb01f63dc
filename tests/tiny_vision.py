"""Tiny random CLIP and DINOv2 models in Hugging Face's layout."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

WORDS = ("a", "red", "blue", "circle", "square", "large", "small", "on", "white", "the")


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of two layers on 32 pixels with a vocabulary of letters."""
    torch.manual_seed(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    config = CLIPConfig(
        text_config=tower | ends | {"vocab_size": len(tokens), "max_position_embeddings": 77},
        vision_config=tower | {"image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )
    model = CLIPModel(config)
    # Default weights are so small that every picture looks alike.
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path, image_size: int = 70, seed: int = 0) -> Path:
    """A DINOv2 of two layers whose position embeddings are of `image_size` pixels."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=image_size, patch_size=14
    )
    model = Dinov2Model(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    return folder
