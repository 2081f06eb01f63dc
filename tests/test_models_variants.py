"""The two combinations that diffusers has no class for, against its classes where they coincide."""

import dataclasses

import pytest
import torch
from diffusers import AutoModel, DiTTransformer2DModel, PixArtTransformer2DModel
from random_models import (
    COMBINATIONS,
    DIFFUSERS_DIT,
    assert_close,
    conditions,
    gradients,
    random_model,
    run_diffusers,
    tiny_config,
)
from safetensors.torch import save_file
from stores import write_tiny_store

from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.infer import KNOWN_HEADS, Hints
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.files import load_transformer, save_transformer
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.loop import run_training

TIMESTEPS = torch.tensor([0, 500, 999])
OWN = [("text", "adaln"), ("class", "adaln_single")]


def silence_cross_attention(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for block in model.transformer_blocks:
            for parameter in block.attn2.to_out[0].parameters():
                parameter.zero_()


@pytest.mark.parametrize("freq_shift", [0, 1])
def test_text_with_adaln_equals_diffusers_dit_while_cross_attention_is_silent(freq_shift) -> None:
    ours = random_model(modulation="adaln", timestep_freq_shift=freq_shift, mlp_norm_eps=1e-5)
    silence_cross_attention(ours)
    twin = tiny_config(conditioning="class", **DIFFUSERS_DIT)
    theirs = DiTTransformer2DModel.from_config(twin.to_diffusers()).eval()
    for block in theirs.transformer_blocks:  # diffusers knows only its own frequency shift
        block.norm1.emb.time_proj.downscale_freq_shift = freq_shift
    weights = {name: t for name, t in ours.state_dict().items() if name in theirs.state_dict()}
    table = torch.zeros(twin.num_embeds_ada_norm + 1, twin.width)
    for index in range(twin.num_layers):
        prefix = f"transformer_blocks.{index}.norm1."
        weights |= {f"{prefix}{name}": t for name, t in ours.state_dict().items() if name.startswith("emb.")}
        weights[f"{prefix}emb.class_embedder.embedding_table.weight"] = table
    theirs.load_state_dict(weights, strict=True)

    latents = torch.randn(3, 4, 16, 16)
    a = ours(latents, TIMESTEPS, **conditions(ours.config))
    b = theirs(latents, TIMESTEPS, torch.tensor([0, 5, 2])).sample
    assert_close(a, b)
    expected = gradients(theirs, b)
    for name, gradient in gradients(ours, a).items():
        if name.startswith("emb."):  # one embedder of ours stands for all of theirs
            copies = [expected[f"transformer_blocks.{i}.norm1.{name}"] for i in range(twin.num_layers)]
            assert_close(gradient, torch.stack(copies).sum(0), name)
        elif name in expected:
            assert_close(gradient, expected[name], name)


@pytest.mark.parametrize("size", [(16, 16), (24, 12)])
def test_class_with_adaln_single_equals_diffusers_pixart_while_cross_attention_is_silent(size) -> None:
    ours = random_model(conditioning="class", modulation="adaln_single")
    theirs = PixArtTransformer2DModel.from_config(tiny_config().to_diffusers()).eval()
    silence_cross_attention(theirs)
    weights = {name: t for name, t in ours.state_dict().items() if name in theirs.state_dict()}
    left = theirs.load_state_dict(weights, strict=False).missing_keys
    assert all("attn2" in name or "caption_projection" in name for name in left)
    with torch.no_grad():
        ours.adaln_single.emb.class_embedder.embedding_table.weight.zero_()

    latents = torch.randn(3, 4, *size)
    a = ours(latents, TIMESTEPS, torch.tensor([0, 5, 2]))
    b = run_diffusers(theirs, latents, TIMESTEPS, {"text_embeds": torch.randn(3, 7, 20)})
    assert_close(a, b)
    expected = gradients(theirs, b)
    ours_gradients = gradients(ours, a)
    assert ours_gradients.keys() - expected.keys() == {
        "adaln_single.emb.class_embedder.embedding_table.weight"
    }
    for name in ours_gradients.keys() & expected.keys():
        assert_close(ours_gradients[name], expected[name], name)


def test_the_class_is_added_to_the_timestep_embedding_of_adaln_single() -> None:
    ours = random_model(conditioning="class", modulation="adaln_single")
    latents = torch.randn(1, 4, 16, 16)
    emb = ours.adaln_single.emb
    with torch.no_grad():
        expected = ours(latents, torch.tensor([300]), torch.tensor([2]))
        emb.timestep_embedder.linear_2.bias += emb.class_embedder.embedding_table.weight[2]
        emb.class_embedder.embedding_table.weight.zero_()
    assert_close(ours(latents, torch.tensor([300]), torch.tensor([4])), expected)


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("more", [{}, {"in_channels": 16, "out_channels": 16, "patch_size": 4}])
def test_every_combination_comes_back_from_disk_as_it_was(tmp_path, combination, more) -> None:
    conditioning, modulation = combination
    ours = random_model(conditioning=conditioning, modulation=modulation, **more)
    save_transformer(ours.config, ours.state_dict(), tmp_path)
    again = load_transformer(tmp_path)
    assert type(again) is {"text": PixArtTransformer, "class": DiTTransformer}[conditioning]
    if conditioning == "text" and modulation == "adaln_single":  # diffusers' class has no number of classes
        assert again.config == dataclasses.replace(ours.config, num_embeds_ada_norm=1000)
    elif combination == ("class", "adaln"):
        assert again.config == dataclasses.replace(ours.config, caption_channels=4096)
    else:
        assert again.config == ours.config
    torch.testing.assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("combination", OWN)
def test_diffusers_refuses_the_combinations_that_it_has_no_class_for(tmp_path, combination) -> None:
    conditioning, modulation = combination
    ours = random_model(conditioning=conditioning, modulation=modulation)
    save_transformer(ours.config, ours.state_dict(), tmp_path)
    for theirs in (PixArtTransformer2DModel, DiTTransformer2DModel):
        with pytest.raises(NotImplementedError, match=f"`norm_type` is '{conditioning}_{modulation}'"):
            theirs.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no class `PixArtVariantTransformer`"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("combination", OWN)
@pytest.mark.parametrize("to", ["diffusers", "official"])
def test_convert_refuses_them_in_one_line(tmp_path, combination, to) -> None:
    conditioning, modulation = combination
    ours = random_model(conditioning=conditioning, modulation=modulation)
    save_transformer(ours.config, ours.state_dict(), tmp_path / "ours")
    step = ConvertStep(source=str(tmp_path / "ours"), to=to)
    with pytest.raises(
        UserError, match=f"modulation {modulation}; neither diffusers nor.*use to=pixart"
    ) as error:
        run_conversion(step, tmp_path / "out", Silent())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_bare_weights_tell_conditioning_and_modulation(tmp_path, combination) -> None:
    conditioning, modulation = combination
    ours = random_model(conditioning=conditioning, modulation=modulation)
    save_file(ours.state_dict(), tmp_path / "bare.safetensors")
    again = load_any(tmp_path / "bare.safetensors", Hints(sample_size=16, num_attention_heads=4)).model
    assert (again.config.conditioning, again.config.modulation) == combination
    given = conditions(ours.config)
    latents = torch.randn(3, 4, 16, 8)
    assert torch.equal(again.eval()(latents, TIMESTEPS, **given), ours(latents, TIMESTEPS, **given))


def test_no_modulation_named_is_that_of_the_papers() -> None:
    assert TransformerConfig().modulation == "adaln_single"
    assert TransformerConfig(conditioning="class").modulation == "adaln"
    assert TransformerConfig() == TransformerConfig(modulation="adaln_single")


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_combination_starts_with_a_silent_output_and_live_gradients(combination) -> None:
    conditioning, modulation = combination
    torch.manual_seed(0)
    model = build_transformer(tiny_config(conditioning=conditioning, modulation=modulation))
    given = conditions(model.config)
    output = model(torch.randn(3, 4, 16, 16), TIMESTEPS, **given)
    assert output.abs().max() == 0
    (output - 1).square().mean().backward()
    last = model.proj_out if modulation == "adaln_single" else model.proj_out_2
    assert last.weight.grad.abs().max() > 0


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_recipe_trains_every_combination(tmp_path, combination) -> None:
    conditioning, modulation = combination
    shape = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8}
    step = TrainStep(
        features=str(write_tiny_store(tmp_path / "features")),
        model=ModelOptions(conditioning=conditioning, modulation=modulation, **shape),
        max_train_steps=3,
        global_batch_size=4,
        micro_batch_size=4,
        lr_warmup_steps=0,
        ema_decay=0.0,
    )
    run_training(step, tmp_path / "run", Silent())
    trained = load_transformer(tmp_path / "run")
    assert (trained.config.conditioning, trained.config.modulation) == combination
    last = trained.proj_out if modulation == "adaln_single" else trained.proj_out_2
    assert last.weight.abs().max() > 0  # it started at zero


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_a_named_size_sets_the_shape_and_a_contradiction_is_refused(size) -> None:
    # Peebles & Xie (2023), Table 1: depth, width, heads.
    depth, width, heads = {
        "S": (12, 384, 6),
        "B": (12, 768, 12),
        "L": (24, 1024, 16),
        "XL": (28, 1152, 16),
    }[size]
    options = ModelOptions(size=size)
    assert (options.num_layers, options.num_attention_heads) == (depth, heads)
    assert options.num_attention_heads * options.attention_head_dim == width
    assert ModelOptions.model_validate(options.model_dump()) == options  # a resolved recipe reads again
    assert ModelOptions(size=size, num_layers=depth) == options
    for field in ("num_layers", "num_attention_heads", "attention_head_dim"):
        with pytest.raises(ValueError, match=f"size {size} has {field} {getattr(options, field)}, not 3"):
            ModelOptions(size=size, **{field: 3})
    assert KNOWN_HEADS[width] == heads
