"""Tiny transformers with random non-zero weights, and comparisons with diffusers' classes."""

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig

COMBINATIONS = [
    ("text", "adaln_single"),
    ("text", "adaln"),
    ("class", "adaln_single"),
    ("class", "adaln"),
]
# What diffusers' DiT class does otherwise than DiT.
DIFFUSERS_DIT = {"embedders": "per_block", "timestep_freq_shift": 1, "mlp_norm_eps": 1e-5}
TOLERANCE = 5e-6
TINY = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "sample_size": 16,
    "caption_channels": 20,
    "num_embeds_ada_norm": 5,
}


def tiny_config(**changes) -> TransformerConfig:
    return TransformerConfig(**(TINY | changes))


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)


def random_model(seed: int = 0, **changes) -> Transformer:
    model = build_transformer(tiny_config(**changes)).eval()
    randomise(model, seed)
    return model


def diffusers_twin(ours: Transformer) -> PixArtTransformer2DModel | DiTTransformer2DModel:
    """diffusers' class of the same config, with the same weights."""
    config = ours.config.to_diffusers()
    classes = {"text": PixArtTransformer2DModel, "class": DiTTransformer2DModel}
    theirs = classes[ours.config.conditioning].from_config(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


def conditions(config: TransformerConfig, batch: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    """What `config` takes beside latents and timesteps: ragged captions and sizes, or labels."""
    generator = torch.Generator().manual_seed(seed)
    if config.conditioning == "class":
        labels = torch.randint(config.num_embeds_ada_norm + 1, (batch,), generator=generator)
        return {"labels": labels}
    length = 7
    lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
    given = {
        "text_embeds": torch.randn(batch, length, config.caption_channels, generator=generator),
        "text_mask": torch.arange(length) < lengths,
    }
    if config.use_additional_conditions:
        given["resolution"] = 64 + 960 * torch.rand(batch, 2, generator=generator)
        given["aspect_ratio"] = 0.25 + 3 * torch.rand(batch, 1, generator=generator)
    return given


def run_diffusers(
    theirs: torch.nn.Module, latents: torch.Tensor, timesteps: torch.Tensor, given: dict[str, torch.Tensor]
) -> torch.Tensor:
    """diffusers' forward pass for our arguments."""
    if "labels" in given:
        return theirs(latents, timesteps, given["labels"]).sample
    sizes = {name: given[name] for name in ("resolution", "aspect_ratio") if name in given}
    return theirs(
        latents,
        given["text_embeds"],
        timesteps,
        added_cond_kwargs=sizes or None,
        encoder_attention_mask=given.get("text_mask"),
    ).sample


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, name: str = "output") -> None:
    """Equal to 5e-6 of the largest entry, or of 1 where all are smaller."""
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1.0)
    assert error <= TOLERANCE, f"{name}: {error:.1e}"


def gradients(model: torch.nn.Module, output: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the output's mean square, by parameter; zeros where none arrives."""
    model.zero_grad()
    output.square().mean().backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
