"""Laws of building encoders: scaled, carded, trained to reconstruct, and continued after a kill."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pixart_core.artifacts.card import Card
from pixart_core.encoders import trained_vae
from pixart_core.encoders.build import run_encoders
from pixart_core.encoders.text import load_text_encoder
from pixart_core.encoders.trained_vae import VaeTraining, build_vae, psnr, train_vae
from pixart_core.encoders.vae import encode_moments, load_vae
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.encoders import AnalyticVae, EncodersStep, TinyT5, TrainedVae

SMALL = VaeTraining((8, 8), 4, 16, 24, 4, 3e-3, 1e-6, seed=0)


def write_images(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = np.full((32, 32, 3), generator.integers(0, 256, 3), np.uint8)
        pixels[8:20, 8:20] = generator.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture number {number}")
    return folder


def test_encoders_are_built_scaled_and_carded(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    step = EncodersStep(data=str(data), vae=AnalyticVae(), text_encoder=TinyT5(width=16, num_heads=2))
    result = run_encoders(step, tmp_path / "out", Silent())

    card = Card.read(tmp_path / "out", "encoders")
    assert result == {"output": str(tmp_path / "out"), **card.details}
    vae = load_vae(str(tmp_path / "out"))
    files = sorted(data.glob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    latents = encode_moments(vae, pixels / 127.5 - 1)[0] * vae.config["scaling_factor"]
    assert latents.std() == pytest.approx(1, abs=0.01)
    assert load_text_encoder(str(tmp_path / "out")).hash == result["text_encoder"]["hash"]
    assert result["vae"]["psnr"] == psnr(vae, pixels) > 20
    assert run_encoders(step, tmp_path / "out", Silent()) == result
    with pytest.raises(UserError, match="made with other options or data"):
        run_encoders(step.model_copy(update={"seed": 1}), tmp_path / "out", Silent())


def test_a_tokenizer_needs_captions(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    for file in data.glob("*.txt"):
        file.unlink()
    with pytest.raises(UserError, match="no image has a caption"):
        run_encoders(EncodersStep(data=str(data), text_encoder=TinyT5()), tmp_path / "out", Silent())


def small_images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (64, 3, 2, 2), generator=generator).float()
    return F.interpolate(colours, size=16, mode="bilinear").to(torch.uint8)


def test_a_trained_vae_learns_to_reconstruct(tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, train_steps=200)
    images = small_images()
    trained = train_vae(options, images[:48], tmp_path / "a.pt", Silent())
    assert psnr(trained, images[48:]) > psnr(build_vae(options).eval(), images[48:]) + 2


def test_a_killed_vae_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_vae(SMALL, small_images(), tmp_path / "a.pt", Silent()).state_dict()
    monkeypatch.setattr(trained_vae, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    steps = 0

    def killed(*args: object) -> float:
        nonlocal steps
        steps += 1
        if steps == 10:
            raise KeyboardInterrupt
        return original(*args)

    original = trained_vae._schedule
    monkeypatch.setattr(trained_vae, "_schedule", killed)
    with pytest.raises(KeyboardInterrupt):
        train_vae(SMALL, small_images(), tmp_path / "b.pt", Silent())
    torch.rand(3)
    resumed = train_vae(SMALL, small_images(), tmp_path / "b.pt", Silent()).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert steps == 10 + 24 - 9


def test_a_trained_vae_is_built_from_the_data(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    options = TrainedVae(block_out_channels=(8, 8), image_size=16, train_steps=4, batch_size=2)
    step = EncodersStep(data=str(data), vae=options, heldout_fraction=0.5, device="cpu")
    result = run_encoders(step, tmp_path / "out", Silent())
    assert result["vae"]["psnr_images"] == "held-out"
    assert json.loads((tmp_path / "out" / "vae" / "config.json").read_text())["latent_channels"] == 4
    assert not (tmp_path / "out" / "training").exists()
    odd = step.model_copy(update={"vae": options.model_copy(update={"image_size": 15})})
    with pytest.raises(UserError, match="image_size 15 is not a multiple of 2"):
        run_encoders(odd, tmp_path / "odd", Silent())
