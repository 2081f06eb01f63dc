"""Laws of `pixart convert --info`: exact numbers, nothing loaded, everything said that the file knows."""

import json
import subprocess
import sys
from pathlib import Path

import original_layouts as original
import pytest
import torch
from command_line import shown_info
from diffusers import AutoencoderKL
from transformers import T5Config, T5EncoderModel
from typer.testing import CliRunner

from pixart_cli.app import app
from pixart_core.conversion.info import describe
from pixart_core.conversion.official import position_table, to_original
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig


def save_xl(config: TransformerConfig, path: Path) -> None:
    """An original file of the real size: every weight is one zero, told to be as large as it should be."""
    with torch.device("meta"):
        model = build_transformer(config)
    weights = {name: torch.zeros(1).expand(t.shape) for name, t in model.state_dict().items()}
    kind = "pixart" if config.conditioning == "text" else "dit"
    content = {name: torch.zeros(1).expand(t.shape) for name, t in to_original(kind, weights).items()}
    side, scale = config.sample_size, config.interpolation_scale
    content["pos_embed"] = position_table(config.width, side, config.patch_size, scale)
    if kind == "pixart":
        content["y_embedder.y_embedding"] = torch.zeros(1).expand(120, 4096)
    torch.save(content, path)


# Parameters of the released models: the numbers are from the papers' code, not from ours.
RELEASED = {
    256: (TransformerConfig(sample_size=32), 610_856_096),
    512: (TransformerConfig(sample_size=64), 610_856_096),
    1024: (
        TransformerConfig(sample_size=128, interpolation_scale=2.0, use_additional_conditions=True),
        611_349_152,
    ),
}


@pytest.mark.parametrize("resolution", RELEASED)
def test_the_released_models_are_told_by_resolution_and_size(tmp_path: Path, resolution: int) -> None:
    config, parameters = RELEASED[resolution]
    save_xl(config, tmp_path / "a.pth")
    info = describe(tmp_path / "a.pth")
    assert (info["resolution"], info["parameters_total"]) == (resolution, parameters)
    assert sum(info["parameters"].values()) == parameters
    in_blocks = ("self_attention", "cross_attention", "feed_forward", "block_modulation")
    assert sum(info["parameters"][part] for part in in_blocks) == 28 * 21_255_552
    assert (info["micro_conditions"], info["uncond"]) == (resolution == 1024, "learned")
    assert (info["stage"], info["problems"], info["unknown"]) == ("text-to-image", [], [])
    assert f"{parameters:,}" in shown_info(tmp_path / "a.pth")
    assert f"{resolution} px" in shown_info(tmp_path / "a.pth")


def test_the_released_dit_is_stage_1(tmp_path: Path) -> None:
    save_xl(TransformerConfig(conditioning="class"), tmp_path / "dit.pt")
    info = describe(tmp_path / "dit.pt")
    # 675,129,632 with the position table of 16 x 16 patches, which DiT counts as a (frozen) parameter.
    assert info["parameters_total"] == 675_129_632 - 256 * 1152
    assert (info["stage"], info["conditioning"]) == ("class-conditional (stage 1)", "1000 classes")


def sparse_safetensors(path: Path) -> None:
    """A file of the real length without a block on the disk."""
    with torch.device("meta"):
        tensors = build_transformer(TransformerConfig()).state_dict()
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with path.open("r+b") as file:
        file.truncate(8 + len(head) + offset)


MEASURED = """
import json, re, sys
from pathlib import Path
import torch
from pixart_core.conversion.info import describe

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
info = describe(sys.argv[1])
compiler = "torch._dynamo" in sys.modules
print(json.dumps({"more": peak() - before, "compiler": compiler, "info": info}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_weights_stay_on_the_disk(tmp_path: Path) -> None:
    sparse_safetensors(tmp_path / "a.safetensors")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "a.safetensors")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["info"]["parameters_total"] == 610_856_096
    assert found["info"]["bytes"] > 4 * 610_856_096
    assert found["more"] < 0.1 * found["info"]["bytes"]
    assert not found["compiler"]  # importing torch's compiler would take longer than all the rest


def test_containers_tell_ema_and_progress(tmp_path: Path) -> None:
    weights = original.make_weights("pixart")
    content = {"state_dict": weights, "state_dict_ema": weights, "epoch": 3, "step": 12_000, "optimizer": {}}
    torch.save(content, tmp_path / "a.pth")
    info = describe(tmp_path / "a.pth")
    assert (info["ema"], info["weights_used"], info["trained"]) == (True, "ema", {"epoch": 3, "step": 12_000})
    assert info["files"] == 1
    assert info["bytes"] == (tmp_path / "a.pth").stat().st_size
    text = shown_info(tmp_path / "a.pth")
    assert "epoch 3, step 12,000" in text
    assert "averaged (EMA); the file has both" in text


def test_what_is_missing_or_not_told_is_named(tmp_path: Path) -> None:
    weights = original.make_weights("pixart")
    del weights["pos_embed"], weights["y_embedder.y_embedding"]
    torch.save(weights, tmp_path / "a.pth")
    info = describe(tmp_path / "a.pth")
    assert info["missing"] == ["pos_embed", "y_embedder.y_embedding"]
    assert info["unknown"] == ["sample_size", "num_attention_heads"]
    assert (info["resolution"], info["sample_size"], info["heads"], info["uncond"]) == (
        None,
        None,
        None,
        "empty",
    )
    assert (info["layers"], info["width"]) == (original.DEPTH, original.WIDTH)
    assert "not told by the file" in shown_info(tmp_path / "a.pth")

    micro = original.make_weights("pixart", micro=True)
    del micro["pos_embed"]
    torch.save(micro, tmp_path / "b.pth")
    info = describe(tmp_path / "b.pth")
    assert (info["resolution"], info["resolution_told_by"]) == (1024, "micro-conditions")


def test_weights_that_do_not_fit_are_a_problem_not_a_failure(tmp_path: Path) -> None:
    weights = original.make_weights("pixart")
    del weights["t_block.1.bias"]
    torch.save(weights, tmp_path / "a.pth")
    info = describe(tmp_path / "a.pth")
    assert info["format"] == "official PixArt"
    assert "missing: t_block.1.bias" in info["problems"][0]
    assert "t_block.1.bias" in shown_info(tmp_path / "a.pth", columns=200)


def test_a_controlnet_tells_base_and_copies(tmp_path: Path) -> None:
    weights = original.make_weights("pixart")
    content = {f"base_model.{name}": tensor for name, tensor in weights.items()}
    block = {name.removeprefix("blocks.0."): t for name, t in weights.items() if name.startswith("blocks.0.")}
    for index in range(2):
        content |= {f"controlnet.{index}.copied_block.{name}": tensor for name, tensor in block.items()}
        content[f"controlnet.{index}.after_proj.weight"] = torch.zeros(original.WIDTH, original.WIDTH)
        content[f"controlnet.{index}.after_proj.bias"] = torch.zeros(original.WIDTH)
    torch.save({"state_dict": content}, tmp_path / "c.pth")
    info = describe(tmp_path / "c.pth")
    assert (info["format"], info["copied_blocks"], info["layers"]) == ("official PixArt ControlNet", 2, 3)
    copies = 2 * (sum(t.numel() for t in block.values()) + original.WIDTH**2 + original.WIDTH)
    buffers = weights["pos_embed"].numel() + weights["y_embedder.y_embedding"].numel()
    base = sum(t.numel() for t in weights.values()) - buffers
    assert info["parameters"] == {"base": base, "copies": copies}
    assert info["missing"] == ["controlnet.0.before_proj.weight", "controlnet.0.before_proj.bias"]
    assert info["uncond"] == "learned"
    assert "copied blocks" in shown_info(tmp_path / "c.pth")


def test_other_models_are_named(tmp_path: Path) -> None:
    t5 = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=9)
    T5EncoderModel(t5).save_pretrained(tmp_path / "t5")
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    AutoencoderKL(block_out_channels=(32,), **kinds).save_pretrained(tmp_path / "vae")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "fc.pt")
    files = {
        "t5/model.safetensors": "a T5 text encoder",
        "vae/diffusion_pytorch_model.safetensors": "an autoencoder",
        "fc.pt": "no PixArt or DiT",
    }
    for name, what in files.items():
        info = describe(tmp_path / name)
        assert info["format"] == "another model"
        assert what in info["problems"][0]
    with pytest.raises(UserError, match="no such file or folder"):
        describe(tmp_path / "nowhere.pt")


def test_json_is_one_object_and_info_stands_alone(tmp_path: Path) -> None:
    torch.save(original.make_weights("dit"), tmp_path / "dit.pt")
    runner = CliRunner()
    result = runner.invoke(app, ["convert", "--info", str(tmp_path / "dit.pt"), "--json"])
    assert json.loads(result.stdout) == json.loads(json.dumps(describe(tmp_path / "dit.pt")))
    result = runner.invoke(app, ["convert", "--info", str(tmp_path / "dit.pt"), "--to", "pixart"])
    assert (result.exit_code, "stands alone" in result.stderr) == (2, True)
