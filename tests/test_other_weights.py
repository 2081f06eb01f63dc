"""Laws of the hashes an image tells: other weights of any part are refused, unless they are asked for."""

import shutil
from pathlib import Path

import pytest
import torch
from command_line import pixart_json
from drawn_images import sample
from safetensors.torch import load_file, save_file
from tiny_pipelines import write_tiny_pipeline

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.artifacts.provenance import Provenance
from pixart_core.artifacts.uncond import write_uncond
from pixart_core.conversion.pipeline import write_pipeline
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.sampling.again import check_image

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PARTS = {
    WEIGHTS: "transformer",
    "vae/diffusion_pytorch_model.safetensors": "VAE",
    "text_encoder/model.safetensors": "text encoder",
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def image(pipeline, tmp_path_factory) -> Path:
    return sample(pipeline, tmp_path_factory.mktemp("samples") / "set")


def changed(pipeline: Path, to: Path, file: str = WEIGHTS) -> Path:
    """A copy of `pipeline` with one weight of `file` moved."""
    other = shutil.copytree(pipeline, to)
    weights = load_file(other / file)
    name = max(weights, key=lambda name: (weights[name].ndim, name))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, other / file, metadata={"format": "pt"})
    return other


@pytest.mark.parametrize("file", PARTS)
def test_other_weights_are_refused_by_their_hash(image, pipeline, tmp_path, file) -> None:
    other = changed(pipeline, tmp_path / "other", file)
    with pytest.raises(UserError, match=rf"its {PARTS[file]} has other weights .*give the --checkpoint"):
        check_image(image, str(other), "cpu", 1)


def test_another_unconditional_caption_is_refused(pipeline, tmp_path) -> None:
    model, root = load_transformer(pipeline), str(pipeline)
    facts = ModelFacts(vae=root, text_encoder=root, uncond="learned")
    tokens = torch.randn(120, 16, generator=torch.Generator().manual_seed(1))
    write_pipeline(tmp_path / "p", model, facts, vae=root, text_encoder=root, y_embedding=tokens)
    Card("pipeline", {}, {}, facts.to_details()).write(tmp_path / "p")
    image = sample(tmp_path / "p", tmp_path / "set", negative_prompt="")
    assert check_image(image, None, "cpu", 1)["same"]
    write_uncond(tmp_path / "p", tokens + 1e-3)
    with pytest.raises(UserError, match="its unconditional caption has other weights"):
        check_image(image, None, "cpu", 1)
    with pytest.raises(UserError, match="its unconditional caption has other weights"):
        check_image(image, str(pipeline), "cpu", 1)  # which encodes the empty caption


def test_a_checkpoint_that_changed_since_draws_from_an_image_only_when_it_is_given(
    pipeline, tmp_path, capsys
) -> None:
    checkpoint = shutil.copytree(pipeline, tmp_path / "model")
    image = sample(checkpoint, tmp_path / "set")
    options = ("--from", image, "--output", tmp_path / "again", "--device", "cpu")
    shutil.rmtree(checkpoint)
    changed(pipeline, checkpoint)
    code, _, error = pixart_json(capsys, "sample", *options)
    assert code == 2
    assert "its transformer has other weights" in error
    assert not list((tmp_path / "again").glob("images/*"))
    for more in ([], ["--set", "seed=3"]):
        assert pixart_json(capsys, "sample", *options, *more)[0] == 2
    shutil.rmtree(tmp_path / "again")
    assert pixart_json(capsys, "sample", *options, "--checkpoint", checkpoint)[0] == 0
    told = Provenance.read(tmp_path / "again/images/000000.png").settings.weights
    before = Provenance.read(image).settings.weights
    assert {part for part in told if told[part] != before[part]} == {"transformer"}


def test_weights_in_another_type_are_no_other_weights(pipeline, image, tmp_path, capsys) -> None:
    options = ("--from", image, "--output", tmp_path / "bf16", "--device", "cpu", "--set", "dtype=bf16")
    code, _, error = pixart_json(capsys, "sample", *options)
    assert code == 0, error
    told = Provenance.read(tmp_path / "bf16/images/000000.png").settings.weights
    before = Provenance.read(image).settings.weights
    assert {part for part in told if told[part] != before[part]} == {"transformer"}


def test_hashes_asked_for_hold_in_a_recipe_too(pipeline, tmp_path) -> None:
    weights = Provenance.read(sample(pipeline, tmp_path / "a")).settings.weights
    sample(pipeline, tmp_path / "b", weights=weights)
    with pytest.raises(UserError, match="its VAE has other weights"):
        sample(pipeline, tmp_path / "c", weights=weights | {"vae": "0123456789abcdef"})
