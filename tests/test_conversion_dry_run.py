"""The law of `pixart convert --dry-run`: it refuses what the conversion would refuse, in the same words."""

import json
from pathlib import Path

import original_layouts as original
import pytest
import torch
from tiny_encoders import write_tiny_encoders
from typer.testing import CliRunner

from pixart_cli.app import app

HEADS = f"num_attention_heads={original.HEADS}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    weights, micro = original.make_weights("pixart"), original.make_weights("pixart", micro=True)
    torch.save({"state_dict": weights}, folder / "pixart.pth")
    torch.save({"state_dict": micro}, folder / "ms.pth")
    torch.save(original.make_weights("dit"), folder / "dit.pt")
    torch.save({"state_dict": weights | {"t_block.1.bias": torch.zeros(3)}}, folder / "wrong.pth")
    torch.save({name: tensor for name, tensor in weights.items() if name != "pos_embed"}, folder / "bare.pth")
    control = {f"base_model.{name}": tensor for name, tensor in weights.items()}
    copied = {"controlnet.0.after_proj.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": control | copied}, folder / "control.pth")
    write_tiny_encoders(folder / "encoders")
    (folder / "narrow" / "text_encoder").mkdir(parents=True)
    (folder / "narrow" / "text_encoder" / "config.json").write_text(json.dumps({"d_model": 8}))
    (folder / "wide" / "vae").mkdir(parents=True)
    vae = {"_class_name": "AutoencoderKL", "latent_channels": 16, "block_out_channels": [8]}
    (folder / "wide" / "vae" / "config.json").write_text(json.dumps(vae))
    return folder


REFUSED = [
    ("bare.pth pixart", "does not tell sample_size and num_attention_heads"),
    (f"bare.pth pixart {HEADS}", "does not tell sample_size; give sample_size="),
    (f"wrong.pth pixart {HEADS}", "wrong shape: adaln_single.linear.bias (3,)"),
    (f"control.pth pixart {HEADS}", "weights=base converts the base model alone"),
    (f"pixart.pth pixart {HEADS} weights=base", "leave weights=base out"),
    (f"pixart.pth dit {HEADS}", "is a PixArt: to=dit is for class-conditional"),
    (f"pixart.pth pixart {HEADS} timestep=300", "timestep: only for a DiT"),
    (f"pixart.pth pixart {HEADS} sample_size=16", "pos_embed is for sample_size 8"),
    (f"pixart.pth pixart {HEADS} caption_channels=7", "has caption_channels 20, not 7"),
    ("pixart.pth pixart num_attention_heads=5", "5 heads do not divide"),
    (f"pixart.pth official {HEADS} max_shard_size=1MB", "an official file is one file"),
    (f"ms.pth pixart {HEADS} resolution=512", "cannot be taken away"),
    (f"dit.pt official {HEADS} resolution=1024", "DiT has none"),
    (f"dit.pt diffusers {HEADS}", "frequency shift 1 and this DiT with 0"),
    (f"dit.pt pixart {HEADS} --text-encoder encoders caption_channels=7", "set caption_channels=20"),
    (f"dit.pt pixart {HEADS} modulation=adaln timestep=3", "not with modulation=adaln"),
    (f"pixart.pth diffusers {HEADS} --vae encoders --text-encoder narrow", "tokens of width 8"),
    (f"pixart.pth diffusers {HEADS} --vae wide --text-encoder encoders", "has 16 latent channels"),
]


def run(sources: Path, line: str, output: Path, *more: str) -> tuple[int, str]:
    source, to, *options = line.split()
    options = [str(sources / o) if (sources / o).is_dir() else o for o in options]
    arguments = ["convert", "--from", str(sources / source), "--to", to, "--output", str(output), *options]
    result = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
    return result.exit_code, result.stderr.splitlines()[-1] if result.exit_code else ""


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_a_dry_run_refuses_what_the_conversion_refuses(
    sources: Path, tmp_path: Path, line: str, message: str
) -> None:
    code, said = run(sources, line, tmp_path / "dry", "--dry-run")
    assert (code, message in said) == (2, True), said
    assert said.count(str(sources / line.split()[0])) <= 1, said
    assert run(sources, line, tmp_path / "real") == (code, said)
    assert list(tmp_path.iterdir()) == []


ACCEPTED = [
    f"pixart.pth pixart {HEADS}",
    f"control.pth pixart {HEADS} weights=base",
    f"bare.pth pixart {HEADS} sample_size=8",
    f"ms.pth pixart {HEADS} resolution=1024",
    f"dit.pt pixart {HEADS} resolution=1024 --text-encoder encoders",
    f"dit.pt diffusers {HEADS} dit_definition=diffusers",
    f"pixart.pth diffusers {HEADS} --vae encoders --text-encoder encoders",
]


@pytest.mark.parametrize("line", ACCEPTED)
def test_a_dry_run_accepts_what_the_conversion_makes(sources: Path, tmp_path: Path, line: str) -> None:
    assert run(sources, line, tmp_path / "dry", "--dry-run") == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert run(sources, line, tmp_path / "real") == (0, "")
    assert (tmp_path / "real" / "card.json").exists()
