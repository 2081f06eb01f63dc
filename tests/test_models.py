"""Our transformers against diffusers' classes on random weights, and the paper's counts."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import sinusoid

TOLERANCE = {"rtol": 0.0, "atol": 5e-6}


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)


def pixart_pair(**changes):
    config = TransformerConfig(
        **{
            "num_attention_heads": 4,
            "attention_head_dim": 12,
            "num_layers": 3,
            "sample_size": 16,
            "caption_channels": 20,
        }
        | changes
    )
    ours = build_transformer(config).eval()
    randomise(ours)
    theirs = PixArtTransformer2DModel.from_config(config.to_diffusers()).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("size", [(16, 16), (24, 12), (8, 20)])
@pytest.mark.parametrize(
    "changes", [{}, {"interpolation_scale": 2.0}, {"in_channels": 3, "out_channels": 3, "patch_size": 4}]
)
def test_pixart_equals_diffusers_forward_and_backward(size, changes) -> None:
    ours, theirs = pixart_pair(**changes)
    latents = torch.randn(3, ours.config.in_channels, *size)
    text, mask = torch.randn(3, 7, 20), torch.arange(7) < torch.tensor([[7], [1], [4]])
    timesteps = torch.tensor([0, 500, 999])

    a = ours(latents, timesteps, text, mask)
    b = theirs(latents, text, timesteps, encoder_attention_mask=mask, added_cond_kwargs=None).sample

    torch.testing.assert_close(a, b, **TOLERANCE)
    a.square().mean().backward()
    b.square().mean().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name].grad, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_micro_conditions_equal_diffusers() -> None:
    ours, theirs = pixart_pair(use_additional_conditions=True)
    latents, text = torch.randn(2, 4, 16, 24), torch.randn(2, 5, 20)
    resolution, ratio = torch.tensor([[512.0, 768.0], [300.0, 400.0]]), torch.tensor([[0.67], [0.75]])
    timesteps = torch.tensor([3, 998])
    a = ours(latents, timesteps, text, resolution=resolution, aspect_ratio=ratio)
    b = theirs(latents, text, timesteps, {"resolution": resolution, "aspect_ratio": ratio}).sample
    torch.testing.assert_close(a, b, **TOLERANCE)
    with pytest.raises(ValueError, match="micro-conditions"):
        ours(latents, timesteps, text)


def test_dit_equals_diffusers_forward_and_backward() -> None:
    config = TransformerConfig(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        sample_size=8,
        conditioning="class",
        num_embeds_ada_norm=5,
        timestep_freq_shift=1,
        embedders="per_block",
        mlp_norm_eps=1e-5,
    )
    ours = build_transformer(config).eval()
    randomise(ours)
    theirs = DiTTransformer2DModel.from_config(config.to_diffusers()).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    latents, timesteps, labels = torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999]), torch.tensor([0, 5, 2])
    a, b = ours(latents, timesteps, labels), theirs(latents, timesteps, labels).sample
    torch.testing.assert_close(a, b, **TOLERANCE)
    a.square().mean().backward()
    b.square().mean().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, **TOLERANCE)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (TransformerConfig(), 610_856_096),
        (TransformerConfig(use_additional_conditions=True, sample_size=128), 611_349_152),
    ],
)
def test_xl2_has_exactly_the_published_parameters(config, parameters) -> None:
    with torch.device("meta"):
        model = build_transformer(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.transformer_blocks[0].parameters()) == 21_255_552


def test_dit_xl2_has_exactly_the_published_parameters() -> None:
    with torch.device("meta"):
        model = build_transformer(TransformerConfig(conditioning="class"))
    # The published count includes the position table, which we compute instead of storing.
    assert sum(p.numel() for p in model.parameters()) + 256 * 1152 == 675_129_632


def test_padding_changes_nothing_and_a_fully_masked_caption_is_finite() -> None:
    ours, _ = pixart_pair()
    latents, timesteps, text = torch.randn(1, 4, 16, 16), torch.tensor([10]), torch.randn(1, 3, 20)
    alone = ours(latents, timesteps, text)
    padded = torch.cat([text, 100 * torch.randn(1, 4, 20)], dim=1)
    torch.testing.assert_close(
        ours(latents, timesteps, padded, torch.arange(7)[None] < 3), alone, **TOLERANCE
    )
    assert torch.isfinite(ours(latents, timesteps, padded, torch.zeros(1, 7, dtype=torch.bool))).all()


def test_cross_attention_starts_silent() -> None:
    model = build_transformer(
        TransformerConfig(
            num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, caption_channels=6
        )
    )
    torch.nn.init.normal_(model.proj_out.weight)
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([100, 100])
    a, b = (model(latents, timesteps, torch.randn(2, 4, 6)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.abs().max() > 0


def test_sinusoids_stay_float32_in_a_bf16_model() -> None:
    ours, _ = pixart_pair()
    model = ours.bfloat16()
    latents, text = torch.randn(2, 4, 16, 16).bfloat16(), torch.randn(2, 3, 20).bfloat16()
    assert sinusoid(torch.tensor([999])).dtype == torch.float32
    a = model(latents, torch.tensor([999, 999]), text)
    b = model(latents, torch.tensor([1000, 1000]), text)
    assert not torch.equal(a, b)  # bf16 would have rounded 999 to 1000


def test_a_config_survives_diffusers_layout() -> None:
    for config in (
        TransformerConfig(interpolation_scale=1.5, in_channels=3, out_channels=3),
        TransformerConfig(conditioning="class", num_embeds_ada_norm=7, caption_channels=4096),
    ):
        assert TransformerConfig.from_diffusers(config.to_diffusers()) == config
