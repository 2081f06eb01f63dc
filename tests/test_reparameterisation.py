"""DiT to PixArt: equal at one timestep, whatever the text, and measured away from it."""

import dataclasses

import original_layouts as original
import pytest
import torch
from diffusers import DiTTransformer2DModel

from pixart_core.conversion.agreement import measure_agreement
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.from_dit import pixart_from_dit, with_definition
from pixart_core.conversion.infer import Hints
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig

CLOSE = {"rtol": 0.0, "atol": 1e-5}
DIFFUSERS = {"embedders": "per_block", "timestep_freq_shift": 1, "mlp_norm_eps": 1e-5}


def random_dit(seed: int = 0, **changes):
    config = TransformerConfig(
        **{
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "num_layers": 3,
            "sample_size": 8,
            "conditioning": "class",
            "num_embeds_ada_norm": 5,
        }
        | changes
    )
    dit = build_transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return dit


@pytest.mark.parametrize("changes", [{}, DIFFUSERS], ids=["original", "diffusers"])
@pytest.mark.parametrize("shared_mlp", ["mean", "first", "zero", "random"])
def test_pixart_equals_the_dit_at_500_whatever_the_text(changes, shared_mlp) -> None:
    dit = random_dit(**changes)
    pixart = pixart_from_dit(dit, caption_channels=12, shared_mlp=shared_mlp, seed=3)
    latents, t = torch.randn(2, 4, 8, 12), torch.tensor([500, 500])
    expected = dit(latents, t, torch.tensor([5, 5]))
    for text in (torch.randn(2, 7, 12), torch.zeros(2, 1, 12)):
        torch.testing.assert_close(pixart(latents, t, text), expected, **CLOSE)
    away = torch.tensor([100, 900])
    assert not torch.allclose(
        pixart(latents, away, text), dit(latents, away, torch.tensor([5, 5])), atol=1e-2
    )


def test_without_class_it_equals_the_dit_whose_class_embedding_is_zero() -> None:
    dit = random_dit()
    pixart = pixart_from_dit(dit, caption_channels=12, class_condition="none")
    with torch.no_grad():
        dit.emb.class_embedder.embedding_table.weight.zero_()
    latents, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    expected = dit(latents, t, torch.tensor([0]))
    torch.testing.assert_close(pixart(latents, t, torch.randn(1, 2, 12)), expected, **CLOSE)


@pytest.mark.parametrize("timestep", [0, 731, 999])
def test_the_timestep_of_agreement_is_a_choice(timestep) -> None:
    dit = random_dit()
    pixart = pixart_from_dit(dit, caption_channels=12, timestep=timestep)
    latents, t = torch.randn(1, 4, 8, 8), torch.tensor([timestep])
    expected = dit(latents, t, torch.tensor([5]))
    torch.testing.assert_close(pixart(latents, t, torch.randn(1, 2, 12)), expected, **CLOSE)


def test_it_equals_the_original_dit_written_by_hand(tmp_path) -> None:
    weights = original.make_weights("dit")
    torch.save(weights, tmp_path / "dit.pt")
    dit = load_any(tmp_path / "dit.pt", Hints(num_attention_heads=original.HEADS)).model
    pixart = pixart_from_dit(dit, caption_channels=12)
    latents, t = torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    expected = original.forward(weights, latents, t, labels=torch.tensor([5, 5]))
    torch.testing.assert_close(pixart(latents, t, torch.randn(2, 3, 12)), expected, **CLOSE)


def test_it_equals_diffusers_dit_trained_in_that_class() -> None:
    dit = random_dit(**DIFFUSERS)
    theirs = DiTTransformer2DModel.from_config(dit.config.to_diffusers()).eval()
    theirs.load_state_dict(dit.state_dict(), strict=True)
    chosen, reason = with_definition(dit, "auto")
    pixart = pixart_from_dit(chosen, caption_channels=12)
    latents, t = torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    expected = theirs(latents, t, torch.tensor([5, 5])).sample
    torch.testing.assert_close(pixart(latents, t, torch.randn(2, 3, 12)), expected, **CLOSE)
    assert "trained in diffusers' class" in reason


def test_original_weights_in_diffusers_layout_mean_the_original_dit() -> None:
    shared = random_dit()
    copies = build_transformer(dataclasses.replace(shared.config, **DIFFUSERS))
    weights = dict(shared.state_dict())
    for name in [name for name in weights if name.startswith("emb.")]:
        tensor = weights.pop(name)
        weights |= {f"transformer_blocks.{i}.norm1.{name}": tensor for i in range(3)}
    copies.load_state_dict(weights, strict=True)
    restored, reason = with_definition(copies, "auto")
    assert restored.config == shared.config
    torch.testing.assert_close(restored.state_dict(), shared.state_dict(), rtol=0, atol=0)
    assert "original DiT" in reason
    assert with_definition(copies, "diffusers")[0] is copies


def test_the_shared_mlp_is_the_mean_over_the_blocks() -> None:
    dit = random_dit()
    pixart = pixart_from_dit(dit, caption_channels=12)
    expected = torch.stack([block.norm1.linear.weight for block in dit.transformer_blocks]).mean(0)
    torch.testing.assert_close(pixart.adaln_single.linear.weight, expected)


def test_the_measured_error_is_that_of_the_outputs() -> None:
    dit = random_dit()
    pixart = pixart_from_dit(dit, caption_channels=12)
    rows = measure_agreement(dit, pixart)
    assert [row["timestep"] for row in rows] == [*range(0, 1000, 100), 999]
    for row in rows:
        at_500 = row["timestep"] == 500
        assert all((row[key] < 1e-5) == at_500 for key in ("modulation", "final", "output")), row
    # Without the class and with one block, the mean MLP is the block's own: no error left at any timestep.
    one = random_dit(num_layers=1)
    pixart = pixart_from_dit(one, caption_channels=12, class_condition="none")
    assert all(row["modulation"] < 1e-5 for row in measure_agreement(one, pixart, class_condition="none"))


def test_new_parts_depend_on_the_seed_alone() -> None:
    dit = random_dit()
    first, again, other = (
        pixart_from_dit(dit, caption_channels=12, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    name = "transformer_blocks.1.attn2.to_q.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first[name.replace(".1.", ".2.", 1)])
