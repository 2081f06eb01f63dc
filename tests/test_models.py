"""Our transformers against diffusers' classes on random weights, and the paper's counts."""

import json
import math
import re

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from random_models import (
    COMBINATIONS,
    DIFFUSERS_DIT,
    assert_close,
    conditions,
    diffusers_twin,
    gradients,
    random_model,
    run_diffusers,
)

from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import sinusoid
from pixart_core.models.files import load_config
from pixart_core.recipe.model_counts import parameters
from pixart_core.recipe.training import ModelOptions

TIMESTEPS = torch.tensor([0, 500, 999])


def assert_parity(ours, theirs, latents, given) -> None:
    a, b = ours(latents, TIMESTEPS, **given), run_diffusers(theirs, latents, TIMESTEPS, given)
    assert_close(a, b)
    expected = gradients(theirs, b)
    for name, gradient in gradients(ours, a).items():
        assert_close(gradient, expected[name], name)


@pytest.mark.parametrize("size", [(16, 16), (24, 12), (8, 20)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"interpolation_scale": 2.0},
        {"in_channels": 3, "out_channels": 3, "patch_size": 4},
        {"in_channels": 16, "out_channels": 32, "caption_channels": 33},
        {"use_additional_conditions": True},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_pixart_equals_diffusers_forward_and_backward(size, changes) -> None:
    ours = random_model(**changes)
    latents = torch.randn(3, ours.config.in_channels, *size)
    assert_parity(ours, diffusers_twin(ours), latents, conditions(ours.config))


def test_pixart_equals_diffusers_where_torch_s_fused_attention_runs() -> None:
    ours = random_model(num_layers=1)
    latents = torch.randn(3, 4, 36, 32)  # 288 tokens: more than 256 x 256 scores
    assert_parity(ours, diffusers_twin(ours), latents, conditions(ours.config))


def test_a_fully_masked_caption_equals_diffusers() -> None:
    ours = random_model()
    given = conditions(ours.config) | {"text_mask": torch.zeros(3, 7, dtype=torch.bool)}
    latents = torch.randn(3, 4, 8, 12)
    a, b = (
        ours(latents, TIMESTEPS, **given),
        run_diffusers(diffusers_twin(ours), latents, TIMESTEPS, given),
    )
    # Scores near -10000 have steps of 1e-3 in float32.
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", [16, 12])
def test_dit_equals_diffusers_forward_and_backward(side) -> None:
    ours = random_model(conditioning="class", **DIFFUSERS_DIT)
    latents = torch.randn(3, 4, side, side)
    given = {"labels": torch.tensor([0, 5, 2])}  # 5 is the null class
    assert_parity(ours, diffusers_twin(ours), latents, given)


def test_micro_conditions_must_be_given() -> None:
    ours = random_model(use_additional_conditions=True)
    with pytest.raises(ValueError, match="micro-conditions"):
        ours(torch.randn(3, 4, 8, 8), TIMESTEPS, torch.randn(3, 5, 20))


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_latents_that_do_not_fit_are_named(combination) -> None:
    conditioning, modulation = combination
    ours = random_model(conditioning=conditioning, modulation=modulation)
    given = conditions(ours.config)
    for shape in ((3, 4, 15, 16), (3, 4, 16, 9), (3, 3, 16, 16)):
        with pytest.raises(
            ValueError, match=f"{shape[1]} channels and {shape[2]}x{shape[3]}.* multiples of 2"
        ):
            ours(torch.randn(shape), TIMESTEPS, **given)


@pytest.mark.parametrize(
    ("config", "total", "block"),
    [
        (TransformerConfig(), 610_856_096, 21_255_552),
        (TransformerConfig(use_additional_conditions=True, sample_size=128), 611_349_152, 21_255_552),
        # The published count includes the position table, which we compute instead of storing.
        (TransformerConfig(conditioning="class"), 675_129_632 - 256 * 1152, 23_905_152),
        (TransformerConfig(modulation="adaln"), 828_494_240, 29_218_176),
    ],
    ids=["PixArt", "PixArt-MS", "DiT", "PixArt-adaLN"],
)
def test_xl2_has_exactly_the_published_parameters(config, total, block) -> None:
    with torch.device("meta"):
        model = build_transformer(config)
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.transformer_blocks[0].parameters()) == block


def test_adaln_of_xl2_is_the_share_of_the_parameters_that_the_paper_names() -> None:
    # 28 Linear(1152, 6 * 1152) instead of one and 28 tables, Linear(1152, 2 * 1152) instead of a table.
    mlp, final = 6 * 1152 * 1153, 2 * 1152 * 1153
    total = 610_856_096 + 27 * mlp - 28 * 6 * 1152 + final - 2 * 1152
    assert total == 828_494_240
    assert round(100 * 28 * mlp / total, 1) == 26.9  # the paper: 833M, of which 27 %


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
@pytest.mark.parametrize("modulation", ["adaln_single", "adaln"])
def test_a_dry_run_estimates_the_parameters_of_every_named_size_exactly(size, modulation) -> None:
    options = ModelOptions(size=size, modulation=modulation)
    config = TransformerConfig(
        num_layers=options.num_layers,
        num_attention_heads=options.num_attention_heads,
        attention_head_dim=options.attention_head_dim,
        modulation=modulation,
    )
    with torch.device("meta"):
        model = build_transformer(config)
    assert parameters(options) == sum(p.numel() for p in model.parameters())


def test_padding_changes_nothing() -> None:
    ours = random_model()
    latents, timesteps, text = torch.randn(1, 4, 16, 16), torch.tensor([10]), torch.randn(1, 3, 20)
    padded = torch.cat([text, 100 * torch.randn(1, 4, 20)], dim=1)
    a = ours(latents, timesteps, padded, torch.arange(7)[None] < 3)
    assert_close(a, ours(latents, timesteps, text))


@pytest.mark.parametrize("modulation", ["adaln_single", "adaln"])
def test_cross_attention_starts_silent(modulation) -> None:
    config = TransformerConfig(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        caption_channels=6,
        modulation=modulation,
    )
    model = build_transformer(config)
    for name, parameter in model.named_parameters():
        if "proj_out" in name:
            torch.nn.init.normal_(parameter)
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([100, 100])
    a, b = (model(latents, timesteps, torch.randn(2, 4, 6)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.abs().max() > 0


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_weights_compute_about_the_same_and_survive_a_fully_masked_caption(
    combination, dtype
) -> None:
    conditioning, modulation = combination
    ours = random_model(conditioning=conditioning, modulation=modulation)
    # 64 tokens: our matrix products; 576: torch's fused attention.
    for side in (16, 48):
        latents, given = torch.randn(3, 4, side, side), conditions(ours.config)
        if conditioning == "text":
            given["text_mask"] = torch.tensor([[False] * 7, [True] * 7, [True] * 2 + [False] * 5])
        expected = ours.float()(latents, TIMESTEPS, **given)
        cast = {name: t.to(dtype) if t.dtype == torch.float32 else t for name, t in given.items()}
        output = ours.to(dtype)(latents.to(dtype), TIMESTEPS, **cast)
        assert output.dtype == dtype
        assert torch.isfinite(output).all()
        # A fully masked caption has no right answer: only that it is finite.
        first = 1 if conditioning == "text" else 0
        error = (output.float() - expected)[first:].norm() / expected[first:].norm()
        assert error <= {torch.float32: 1e-6, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype], side


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sinusoids_stay_float32_whatever_the_weights(dtype) -> None:
    model = random_model(in_channels=4).to(dtype)
    seen = []
    first = model.adaln_single.emb.timestep_embedder.linear_1
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(
            torch.randn(3, 4, 24, 16).to(dtype),
            torch.tensor([257, 501, 999]),
            torch.randn(3, 2, 20).to(dtype),
        )
    # Rounded to half precision first, 257 would be 256 and 999 would be 1000 (bf16).
    exact = torch.tensor([[257.0], [501.0], [999.0]], dtype=torch.float64)
    angles = exact * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    expected = torch.cat([angles.cos(), angles.sin()], dim=-1)
    assert seen[0].dtype == dtype
    assert (seen[0].double() - expected).abs().max() <= torch.finfo(dtype).eps
    assert sinusoid(TIMESTEPS.to(dtype)).dtype == torch.float32
    table = model.pos_embed.positions(12, 8, torch.device("cpu"))
    theirs = get_2d_sincos_pos_embed(48, (12, 8), base_size=8, output_type="pt")
    torch.testing.assert_close(table, theirs.float(), rtol=0, atol=1e-6)


def test_a_config_survives_diffusers_layout() -> None:
    for config in (
        TransformerConfig(interpolation_scale=1.5, in_channels=3, out_channels=3),
        TransformerConfig(conditioning="class", num_embeds_ada_norm=7, caption_channels=4096),
    ):
        assert TransformerConfig.from_diffusers(config.to_diffusers()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3, "attention_head_dim": 5}, "multiple of 4"),
        ({"use_additional_conditions": True, "attention_head_dim": 64}, "that 3 divides"),
        ({"use_additional_conditions": True, "conditioning": "class"}, "goes with conditioning text"),
        ({"timestep_freq_shift": 1}, "goes with modulation adaln"),
        ({"embedders": "per_block", "modulation": "adaln"}, "conditioning class"),
        ({"out_channels": 5}, "neither in_channels nor twice"),
        ({"sample_size": 33}, "multiple of patch 2"),
        ({"modulation": "adaln_zero"}, "modulation = 'adaln_zero' is none of"),
        ({"timestep_freq_shift": 128, "modulation": "adaln"}, "none of 0, 1"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 0),
        ("num_layers", 2.5),
        ("num_layers", -1),
        ("num_attention_heads", 0),
        ("num_attention_heads", "16"),
        ("caption_channels", None),
        ("sample_size", None),
        ("interpolation_scale", 0),
        ("interpolation_scale", -1.0),
        ("interpolation_scale", math.nan),
        ("norm_eps", "1e-6"),
        ("use_additional_conditions", "no"),
    ],
)
def test_a_config_file_with_a_value_of_another_kind_is_one_clear_error(tmp_path, name, value) -> None:
    config = TransformerConfig().to_diffusers()
    (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
    ours = {"norm_eps": "mlp_norm_eps"}.get(name, name)
    with pytest.raises(UserError, match=re.escape(f"config.json: {ours} = {value!r} is no")):
        load_config(tmp_path)


def test_a_config_file_without_an_object_is_one_clear_error(tmp_path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"config\.json is damaged: it holds no JSON object"):
        load_config(tmp_path)
