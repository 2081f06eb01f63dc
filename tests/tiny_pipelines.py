"""A tiny text-to-image pipeline with random weights, as `pixart train` and `convert` write it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.pipeline import write_pipeline
from pixart_core.encoders.analytic_vae import build_analytic_vae
from pixart_core.encoders.text import load_text_encoder
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.progress import Silent
from pixart_core.sampling.model import SamplingModel, load_model
from pixart_core.sampling.outline import read_outline
from pixart_core.sampling.prompt_tokens import encode_prompts

CPU = torch.device("cpu")


def write_tiny_pipeline(root: Path, *, learned_variance: bool = True, sample_size: int = 8) -> Path:
    """Write encoders and a pipeline of twice `sample_size` pixels below `root`; returns its folder."""
    tokenizer = build_tokenizer(["a red circle on a white background", "two blue squares"])
    build_tiny_t5(len(tokenizer), width=16, num_heads=2).save_pretrained(root / "text_encoder")
    tokenizer.save_pretrained(root / "tokenizer")
    build_analytic_vae(1, scaling_factor=1.25).save_pretrained(root / "vae")
    torch.manual_seed(0)
    model = build_transformer(
        TransformerConfig(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=3,
            out_channels=6 if learned_variance else 3,
            num_layers=2,
            sample_size=sample_size,
            caption_channels=16,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    facts = ModelFacts(vae=str(root), text_encoder=str(root))
    write_pipeline(root / "pipeline", model, facts, vae=str(root), text_encoder=str(root))
    return root / "pipeline"


def open_model(folder: Path, texts: Sequence[str] = (), dtype: torch.dtype = torch.float32) -> SamplingModel:
    """A model of the CPU with the tokens of `texts` and of the empty caption."""
    outline = read_outline(str(folder))
    everything = list(dict.fromkeys([*texts, ""]))
    tokens = encode_prompts(
        everything,
        everything,
        lambda: load_text_encoder(outline.facts.text_encoder, CPU, dtype),
        max_tokens=outline.facts.max_tokens,
        dtype=dtype,
        folder=folder,
        progress=Silent(),
    )
    return load_model(outline, tokens, CPU, dtype)
