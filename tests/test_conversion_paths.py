"""Every form of a PixArt or DiT that people have goes in, every useful one comes out, through the command."""

import json
from pathlib import Path

import original_layouts as original
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from tiny_encoders import write_tiny_encoders
from transformers import AutoTokenizer, T5EncoderModel
from typer.testing import CliRunner

from pixart_cli.app import app
from pixart_core.models.files import load_transformer

HEADS = f"num_attention_heads={original.HEADS}"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def pixart(*arguments: object) -> dict:
    """Run `pixart convert` and return its result object."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """Run `pixart convert`, which must refuse in one line; return the line."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 2, result.stdout
    *said, error = result.stderr.splitlines()
    assert error.startswith("pixart: error:"), result.stderr
    assert not any("error" in line for line in said), result.stderr
    return error


def official_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the one original file in `folder`."""
    (file,) = folder.glob("*.pt*")
    content = torch.load(file, weights_only=True)
    return content["state_dict" if file.suffix == ".pth" else "ema"]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def theirs() -> PixArtTransformer2DModel:
    """A random model of diffusers' own class."""
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=original.HEADS,
        attention_head_dim=original.WIDTH // original.HEADS,
        cross_attention_dim=original.WIDTH,
        caption_channels=original.CAPTION,
        num_layers=original.DEPTH,
        sample_size=original.SIDE,
        use_additional_conditions=False,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def official_forms(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, Path]:
    """The same weights as people have them: containers, old pickles, wrappers, safetensors."""
    others = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    contents = {
        "container.pth": {"state_dict": weights, "epoch": 7},
        "ema.pth": {"state_dict": others, "state_dict_ema": weights, "optimizer": {"state": {}}},
        "flat.pth": weights,
        "wrapped.pth": {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}},
        "comfy.pth": {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()},
    }
    for name, content in contents.items():
        torch.save(content, folder / name)
    torch.save(contents["ema.pth"], folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "one.safetensors")
    (folder / "noname").write_bytes((folder / "one.safetensors").read_bytes())
    names = [*contents, "legacy.pth", "one.safetensors", "noname"]
    return {name: folder / name for name in names}


@pytest.mark.parametrize("micro", [False, True], ids=["plain", "micro-conditions"])
def test_every_official_form_becomes_the_same_checkpoint_and_comes_back(tmp_path: Path, micro: bool) -> None:
    weights = original.make_weights("pixart", micro=micro, scale=2.0)
    found: list[bytes] = []
    for name, source in official_forms(tmp_path, weights).items():
        result = pixart("--from", source, "--to", "pixart", "--output", tmp_path / f"ours-{name}", HEADS)
        assert result["model"] == "PixArt"
        found.append((tmp_path / f"ours-{name}" / "transformer" / WEIGHTS).read_bytes())
    assert len(set(found)) == 1
    pixart("--from", tmp_path / "ours-flat.pth", "--to", "official", "--output", tmp_path / "back")
    assert_same(official_weights(tmp_path / "back"), weights)


def diffusers_forms(folder: Path, model: PixArtTransformer2DModel, encoders: Path) -> dict[str, list[object]]:
    """Arguments of `--from` for the same model as diffusers and its users keep it."""
    model.save_pretrained(folder / "folder")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    model.save_pretrained(folder / "pickled", safe_serialization=False)
    model.save_pretrained(folder / "variant", variant="fp16")  # only the name: its weights are float32
    parts = {
        "vae": AutoencoderKL.from_pretrained(encoders / "vae"),
        "text_encoder": T5EncoderModel.from_pretrained(encoders / "text_encoder"),
        "tokenizer": AutoTokenizer.from_pretrained(encoders / "tokenizer"),
    }
    scheduler = DPMSolverMultistepScheduler()
    PixArtAlphaPipeline(transformer=model, scheduler=scheduler, **parts).save_pretrained(folder / "pipeline")
    bare = folder / "bare.safetensors"
    bare.write_bytes((folder / "folder" / WEIGHTS).read_bytes())
    shard = sorted((folder / "shards").glob("*.safetensors"))[0]
    return {
        "folder": [folder / "folder"],
        "the file in its folder": [folder / "folder" / WEIGHTS],
        "shards": [folder / "shards"],
        "one of the shards": [shard],
        "pickled": [folder / "pickled"],
        "variant": [folder / "variant"],
        "pipeline": [folder / "pipeline"],
        "transformer of the pipeline": [folder / "pipeline" / "transformer"],
        "bare file": [bare, HEADS, f"sample_size={original.SIDE}"],
    }


def test_every_diffusers_form_becomes_the_same_checkpoint(tmp_path: Path, theirs, encoders: Path) -> None:
    expected = theirs.state_dict()
    for name, (source, *hints) in diffusers_forms(tmp_path, theirs, encoders).items():
        output = tmp_path / "ours" / name
        pixart("--from", source, "--to", "pixart", "--output", output, *hints)
        assert_same(load_file(output / "transformer" / WEIGHTS), expected)
        model = load_transformer(output)
        assert model.config.sample_size == original.SIDE
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, original.CAPTION)
    t = torch.tensor([3, 800])
    torch.testing.assert_close(model(latents, t, text), theirs(latents, text, t).sample, rtol=0, atol=5e-6)


def test_a_pipeline_goes_through_the_official_file_and_back(tmp_path: Path, theirs, encoders: Path) -> None:
    pipeline = diffusers_forms(tmp_path, theirs, encoders)["pipeline"][0]
    result = pixart("--from", pipeline, "--to", "official", "--output", tmp_path / "official")
    assert any("y_embedding is zeros" in note for note in result["notes"])
    options = [f"--vae={encoders}", f"--text-encoder={encoders}"]
    pixart("--from", tmp_path / "official", "--to", "diffusers", "--output", tmp_path / "again", *options)
    again = PixArtAlphaPipeline.from_pretrained(tmp_path / "again")
    assert_same(again.transformer.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_that_of_torch_and_stays_exact(
    tmp_path: Path, theirs, encoders, dtype: str
) -> None:
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    theirs.save_pretrained(tmp_path / "folder")
    options = [f"--vae={encoders}", f"--text-encoder={encoders}", f"dtype={dtype}", "max_shard_size=1MB"]
    pixart("--from", tmp_path / "folder", "--to", "diffusers", "--output", tmp_path / "half", *options)
    pipeline = PixArtAlphaPipeline.from_pretrained(tmp_path / "half", torch_dtype=kind)
    half = {name: tensor.to(kind) for name, tensor in theirs.state_dict().items()}
    assert_same(pipeline.transformer.state_dict(), half)
    # Up and down again loses nothing.
    pixart("--from", tmp_path / "half", "--to", "pixart", "--output", tmp_path / "full")
    pixart("--from", tmp_path / "full", "--to", "official", "--output", tmp_path / "o", f"dtype={dtype}")
    pixart("--from", tmp_path / "o", "--to", "pixart", "--output", tmp_path / "again", f"dtype={dtype}")
    assert_same(load_file(tmp_path / "again" / "transformer" / WEIGHTS), half)


def test_a_dit_goes_through_every_layout_and_comes_back(tmp_path: Path) -> None:
    weights = original.make_weights("dit")
    torch.save(weights, tmp_path / "dit.pt")
    result = pixart("--from", tmp_path / "dit.pt", "--to", "dit", "--output", tmp_path / "ours", HEADS)
    assert result["model"] == "DiT"
    model = load_transformer(tmp_path / "ours")  # what `pixart train init=` starts from
    latents, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([3, 800]), torch.tensor([1, 4])
    expected = original.forward(weights, latents, t, labels=labels)
    torch.testing.assert_close(model(latents, t, labels), expected, rtol=0, atol=5e-6)

    line = refused("--from", tmp_path / "ours", "--to", "diffusers", "--output", tmp_path / "d")
    assert "frequency shift" in line
    forced = ["--from", tmp_path / "ours", "--to", "diffusers", "--output", tmp_path / "d"]
    result = pixart(*forced, "dit_definition=diffusers")
    assert any("outputs differ" in note for note in result["notes"])
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "d" / "transformer")
    assert theirs.config.num_embeds_ada_norm == original.CLASSES

    pixart("--from", tmp_path / "d", "--to", "official", "--output", tmp_path / "back")
    assert_same(official_weights(tmp_path / "back"), weights)
    pixart("--from", tmp_path / "d", "--to", "dit", "--output", tmp_path / "again")
    for name in (WEIGHTS, "config.json"):
        first, again = (tmp_path / place / "transformer" / name for place in ("ours", "again"))
        assert first.read_bytes() == again.read_bytes()


def test_a_pixart_is_no_dit(tmp_path: Path) -> None:
    torch.save(original.make_weights("pixart"), tmp_path / "a.pth")
    line = refused("--from", tmp_path / "a.pth", "--to", "dit", "--output", tmp_path / "x", HEADS)
    assert "use to=pixart" in line
    assert not (tmp_path / "x").exists()


def controlnet(copies: int = 2) -> dict[str, torch.Tensor]:
    weights = original.make_weights("pixart")
    first = {name.removeprefix("blocks.0."): t for name, t in weights.items() if name.startswith("blocks.0.")}
    result = {f"base_model.{name}": tensor for name, tensor in weights.items()}
    for index in range(copies):
        result |= {f"controlnet.{index}.copied_block.{name}": tensor for name, tensor in first.items()}
        for name in ("before_proj", "after_proj")[index > 0 :]:
            result[f"controlnet.{index}.{name}.weight"] = torch.zeros(original.WIDTH, original.WIDTH)
            result[f"controlnet.{index}.{name}.bias"] = torch.zeros(original.WIDTH)
    return result


def test_a_controlnet_gives_its_base_model_only_when_asked(tmp_path: Path) -> None:
    torch.save({"state_dict": controlnet()}, tmp_path / "c.pth")
    arguments = ["--from", tmp_path / "c.pth", "--to", "official", "--output", tmp_path / "base", HEADS]
    assert "2 copied blocks; weights=base converts the base model alone" in refused(*arguments)
    pixart(*arguments, "weights=base")
    assert_same(official_weights(tmp_path / "base"), original.make_weights("pixart"))
    again = ["--from", tmp_path / "base", "--to", "pixart", "--output", tmp_path / "x", "weights=base"]
    assert "no ControlNet's base model" in refused(*again)


def test_weights_that_the_file_does_not_have_are_not_replaced_by_others(tmp_path: Path) -> None:
    torch.save({"ema": original.make_weights("dit")}, tmp_path / "dit.pt")
    arguments = ["--from", tmp_path / "dit.pt", "--to", "dit", "--output", tmp_path / "x", HEADS]
    assert "averaged weights only; leave weights=model out" in refused(*arguments, "weights=model")
    pixart(*arguments)


def test_a_transformer_folder_inside_a_checkpoint_keeps_what_its_card_says(tmp_path: Path) -> None:
    weights = original.make_weights("pixart")
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    pixart("--from", tmp_path / "a.pth", "--to", "pixart", "--output", tmp_path / "ours", HEADS)
    for index, source in enumerate(("transformer", f"transformer/{WEIGHTS}")):
        output = tmp_path / f"back{index}"
        pixart("--from", tmp_path / "ours" / source, "--to", "official", "--output", output)
        assert_same(official_weights(output), weights)  # the learned caption is still there


def test_another_file_beside_a_config_is_itself_read(tmp_path: Path, theirs) -> None:
    theirs.save_pretrained(tmp_path / "folder")
    other = {name: tensor + 1 for name, tensor in theirs.state_dict().items()}
    save_file(other, tmp_path / "folder" / "finetuned.safetensors")
    source = tmp_path / "folder" / "finetuned.safetensors"
    pixart("--from", source, "--to", "pixart", "--output", tmp_path / "ours")
    assert_same(load_file(tmp_path / "ours" / "transformer" / WEIGHTS), other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "official", "max_shard_size=1MB"], "one file"),
        (["--to", "pixart", "max_shard_size=0MB"], "max_shard_size"),
        (["--to", "pixart", "dit_definition=original"], "is no DiT"),
        (["--to", "keras"], "pixart"),
    ],
)
def test_options_without_an_effect_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    torch.save(original.make_weights("pixart"), tmp_path / "a.pth")
    line = refused("--from", tmp_path / "a.pth", "--output", tmp_path / "x", HEADS, *options)
    assert message in line
