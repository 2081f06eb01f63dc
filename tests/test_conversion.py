"""Every layout in, every layout out: bit-exact, strict, safe."""

import argparse
import json

import original_layouts as original
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pixart_cli.app import app
from pixart_core.artifacts.card import read_card
from pixart_core.artifacts.uncond import read_uncond
from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.infer import Hints
from pixart_core.conversion.info import describe
from pixart_core.conversion.official import read_positions
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep

HINTS = Hints(num_attention_heads=original.HEADS)
CLOSE = {"rtol": 0.0, "atol": 5e-6}


def convert(source, to, output, **options):
    options = {"num_attention_heads": original.HEADS} | options
    return run_conversion(ConvertStep(source=str(source), to=to, **options), output, Silent())


@pytest.fixture
def pixart_file(tmp_path):
    path = tmp_path / "PixArt.pth"
    torch.save({"state_dict": original.make_weights("pixart"), "epoch": 3}, path)
    return path


@pytest.fixture
def dit_file(tmp_path):
    path = tmp_path / "dit.pt"
    torch.save(original.make_weights("dit"), path)
    return path


def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, original.SIDE, original.SIDE, generator=generator)
    text = torch.randn(3, 5, original.CAPTION, generator=generator)
    return latents, torch.tensor([0, 417, 999]), text


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_official_pixart_computes_what_the_original_does(tmp_path, scale) -> None:
    weights = original.make_weights("pixart", scale=scale)
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    model, facts, report = load_any(tmp_path / "a.pth", HINTS)
    assert (model.config.sample_size, model.config.interpolation_scale) == (original.SIDE, scale)
    assert (facts.uncond, facts.max_tokens) == ("learned", original.TOKENS)
    assert torch.equal(report.y_embedding, weights["y_embedder.y_embedding"])
    latents, t, text = inputs()
    expected = original.forward(weights, latents, t, text=text)
    torch.testing.assert_close(model(latents, t, text), expected, **CLOSE)


def test_official_micro_conditions_compute_what_the_original_does(tmp_path) -> None:
    weights = original.make_weights("pixart", micro=True)
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    model = load_any(tmp_path / "a.pth", HINTS).model
    latents, t, text = inputs()
    size = torch.tensor([[512.0, 768.0]]).repeat(3, 1), torch.tensor([[0.67]]).repeat(3, 1)
    expected = original.forward(weights, latents, t, text=text, size=size)
    torch.testing.assert_close(model(latents, t, text, None, *size), expected, **CLOSE)


@pytest.mark.parametrize("container", ["flat", "training"])
def test_original_dit_computes_what_the_original_does(tmp_path, container) -> None:
    weights = original.make_weights("dit")
    others = original.make_weights("dit", seed=9)
    training = {"model": others, "ema": weights, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(weights if container == "flat" else training, tmp_path / "dit.pt")
    model = load_any(tmp_path / "dit.pt", HINTS).model
    latents, t, _ = inputs()
    labels = torch.tensor([0, 5, 2])
    expected = original.forward(weights, latents, t, labels=labels)
    torch.testing.assert_close(model(latents, t, labels), expected, **CLOSE)


def test_ema_weights_are_taken_unless_the_others_are_asked_for(tmp_path) -> None:
    plain, ema = original.make_weights("pixart", seed=1), original.make_weights("pixart", seed=2)
    module = {f"module.{name}": tensor for name, tensor in plain.items()}
    torch.save({"state_dict": module, "state_dict_ema": ema}, tmp_path / "both.pth")
    loaded = load_any(tmp_path / "both.pth", HINTS)
    assert torch.equal(loaded.model.proj_out.weight, ema["final_layer.linear.weight"])
    asked = load_any(tmp_path / "both.pth", Hints(num_attention_heads=original.HEADS, weights="model"))
    assert torch.equal(asked.model.proj_out.weight, plain["final_layer.linear.weight"])
    assert describe(tmp_path / "both.pth")["ema"] is True


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("micro", [False, True])
def test_official_to_ours_to_official_is_bit_exact(tmp_path, dtype, micro) -> None:
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    weights = {name: t.to(kind) for name, t in original.make_weights("pixart", micro=micro).items()}
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    result = convert(tmp_path / "a.pth", "pixart", tmp_path / "ours")
    assert read_card(tmp_path / "ours")["kind"] == "checkpoint"
    assert torch.equal(read_uncond(tmp_path / "ours"), weights["y_embedder.y_embedding"])
    back = convert(tmp_path / "ours", "official", tmp_path / "back", dtype=dtype)
    again = torch.load(tmp_path / "back" / back["file"], weights_only=True)["state_dict"]
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert again[name].dtype == kind
        assert torch.equal(again[name], tensor), name
    assert result["parameters"] == sum(
        t.numel() for name, t in weights.items() if name not in ("pos_embed", "y_embedder.y_embedding")
    )


def test_original_dit_to_ours_and_back_is_bit_exact(tmp_path, dit_file) -> None:
    result = convert(dit_file, "official", tmp_path / "back")
    again = torch.load(tmp_path / "back" / result["file"], weights_only=True)["ema"]
    weights = original.make_weights("dit")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_ours_to_diffusers_and_back_is_bit_exact(tmp_path, pixart_file) -> None:
    convert(pixart_file, "pixart", tmp_path / "ours")
    folder = tmp_path / "ours" / "transformer"
    theirs = PixArtTransformer2DModel.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "diffusion_pytorch_model.safetensors.index.json").exists()
    model = load_any(tmp_path / "theirs").model
    for name, tensor in load_transformer(folder).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    latents, t, text = inputs()
    expected = original.forward(original.make_weights("pixart"), latents, t, text=text)
    torch.testing.assert_close(theirs(latents, text, t).sample, expected, **CLOSE)


def test_hub_folders_of_the_older_class_name_are_read(tmp_path, pixart_file) -> None:
    convert(pixart_file, "pixart", tmp_path / "ours")
    path = tmp_path / "ours" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "Transformer2DModel"}))
    assert load_any(tmp_path / "ours" / "transformer").model.config.caption_channels == original.CAPTION


def test_a_dit_becomes_a_pixart_checkpoint_with_its_errors(tmp_path, dit_file) -> None:
    result = convert(dit_file, "pixart", tmp_path / "ours", caption_channels=7, text_encoder="org/encoder")
    rows = json.loads((tmp_path / "ours" / "reparameterisation.json").read_text())
    assert rows == result["reparameterisation"]
    assert next(row for row in rows if row["timestep"] == 500)["output"] < 1e-5
    assert (tmp_path / "ours" / "reparameterisation.png").stat().st_size > 1000
    model, facts, _ = load_any(tmp_path / "ours")
    assert (model.config.conditioning, model.config.caption_channels) == ("text", 7)
    assert (facts.uncond, facts.text_encoder) == ("empty", "org/encoder")


def test_diffusers_dit_goes_out_only_where_its_class_computes_the_same(tmp_path, dit_file) -> None:
    with pytest.raises(UserError, match="frequency shift"):
        convert(dit_file, "diffusers", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_describe_names_format_size_and_parts(pixart_file, dit_file) -> None:
    info = describe(pixart_file)
    assert (info["format"], info["dtype"], info["ema"]) == ("official PixArt", "float32", False)
    assert (info["sample_size"], info["resolution"], info["model"]) == (8, 64, "PixArt")
    assert info["problems"] == []
    assert sum(info["parameters"].values()) == info["parameters_total"]
    assert describe(dit_file)["conditioning"] == f"{original.CLASSES} classes"
    assert describe(dit_file)["unknown"] == ["num_attention_heads"]
    json.dumps(info)


def test_single_safetensors_need_only_what_they_do_not_tell(tmp_path, pixart_file) -> None:
    save_file(original.make_weights("pixart"), tmp_path / "official.safetensors")
    assert load_any(tmp_path / "official.safetensors", HINTS).model.config.sample_size == original.SIDE
    convert(pixart_file, "pixart", tmp_path / "ours")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "ours" / "transformer" / "diffusion_pytorch_model.safetensors"), bare)
    with pytest.raises(UserError, match="give sample_size"):
        load_any(bare, HINTS)
    model = load_any(bare, Hints(sample_size=8, num_attention_heads=original.HEADS)).model
    torch.testing.assert_close(
        model.state_dict(), load_any(pixart_file, HINTS).model.state_dict(), rtol=0, atol=0
    )


def test_a_stated_resolution_cannot_be_overridden_silently(tmp_path, pixart_file) -> None:
    convert(pixart_file, "pixart", tmp_path / "ours")
    with pytest.raises(UserError, match=r"says sample_size 8, not 16"):
        convert(tmp_path / "ours", "official", tmp_path / "b", sample_size=16)


@pytest.mark.parametrize(("scale", "grid"), [(1.0, 16), (1.5, 8), (2.0, 64), (0.5, 8), (1.37, 16)])
def test_positions_are_read_back_from_their_table(scale, grid) -> None:
    table = original.position_table(24, grid, grid, scale)
    for stored in (table, table.half()):
        size, found = read_positions(stored, 2, "x")
        assert size == 2 * grid
        assert found == pytest.approx(scale, rel=1e-3)


def test_missing_and_left_over_weights_are_named(tmp_path) -> None:
    weights = original.make_weights("pixart")
    del weights["blocks.1.mlp.fc1.bias"]
    torch.save({"state_dict": weights | {"blocks.0.attn.rel_pos": torch.zeros(3)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"missing: blocks\.1\.mlp\.fc1\.bias; left over: blocks\.0\.attn"):
        load_any(tmp_path / "a.pth", HINTS)
    wrong = original.make_weights("pixart") | {"t_block.1.bias": torch.zeros(5)}
    torch.save({"state_dict": wrong}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"wrong shape: adaln_single\.linear\.bias"):
        load_any(tmp_path / "b.pth", HINTS)
    noise = original.make_weights("pixart") | {"pos_embed": torch.randn(1, 16, original.WIDTH)}
    torch.save({"state_dict": noise}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="pos_embed is not the sin-cos table"):
        load_any(tmp_path / "c.pth", HINTS)


def test_a_learned_caption_that_is_lost_is_not_made_up(tmp_path, pixart_file) -> None:
    convert(pixart_file, "pixart", tmp_path / "ours")
    (tmp_path / "ours" / "uncond.safetensors").unlink()
    with pytest.raises(UserError, match=r"no uncond\.safetensors"):
        convert(tmp_path / "ours", "official", tmp_path / "back")


def test_info_on_the_command_line_describes_one_file(pixart_file) -> None:
    runner = CliRunner()
    info = json.loads(runner.invoke(app, ["convert", "--info", str(pixart_file), "--json"]).stdout)
    assert info["format"] == "official PixArt"
    assert info["parameters_total"] > 0
    for arguments in (["--info", "nowhere.pth"], ["--from", str(pixart_file)], []):
        result = runner.invoke(app, ["convert", *arguments])
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1


def test_options_that_do_not_apply_are_refused(tmp_path, pixart_file) -> None:
    with pytest.raises(UserError, match="shared_mlp: only for a DiT"):
        convert(pixart_file, "pixart", tmp_path / "a", shared_mlp="first")
    with pytest.raises(UserError, match="vae and text_encoder"):
        convert(pixart_file, "official", tmp_path / "a", vae="org/vae")
