"""Laws of hub ids as sources: the model is fetched without its encoders; these are copied, never loaded."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from pixart_core.artifacts.card import Card
from pixart_core.conversion import encoder_folders
from pixart_core.conversion.convert import run_conversion
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep

ID = "org/model"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `org/model` holds."""
    folder = tmp_path_factory.mktemp("repository")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    tokenizer = build_tokenizer(["a red circle"])
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "num_layers": 1}
    PixArtAlphaPipeline(
        vae=AutoencoderKL(latent_channels=4, block_out_channels=(32, 32), **kinds),
        text_encoder=build_tiny_t5(len(tokenizer), width=20),
        tokenizer=tokenizer,
        transformer=PixArtTransformer2DModel(
            **size, sample_size=8, caption_channels=20, use_additional_conditions=False
        ),
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that fills from `repository` as the hub's own function would fill it."""
    cache = tmp_path / "cache"

    def download(source: str, *, allow_patterns: list[str], ignore_patterns: Any = None, **_: Any) -> str:
        assert source == ID
        names = [str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()]
        for name in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, cache / name)
        return str(cache)

    def locate(source: str, part: str) -> dict[str, Any]:
        return {"pretrained_model_name_or_path": source, "subfolder": part, "revision": "0" * 40}

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(encoder_folders, "locate", locate)
    return cache


def convert(to: str, output: Path) -> None:
    run_conversion(ConvertStep(source=ID, to=to), output, Silent())


def test_a_model_is_fetched_without_its_encoders(tmp_path: Path, hub: Path) -> None:
    convert("pixart", tmp_path / "ours")
    weights = {str(file.relative_to(hub)) for file in hub.rglob("*.safetensors")}
    assert weights == {"transformer/diffusion_pytorch_model.safetensors"}
    # The card names the repository, not a folder of this machine's cache.
    facts = Card.read(tmp_path / "ours", "checkpoint").details["model"]
    assert (facts["vae"], facts["text_encoder"]) == (ID, ID)


def test_half_precision_is_fetched_where_there_is_nothing_else(
    tmp_path: Path, hub: Path, repository: Path, request: pytest.FixtureRequest
) -> None:
    folder, name = repository / "transformer", "diffusion_pytorch_model"
    full, half = folder / f"{name}.safetensors", folder / f"{name}.fp16.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(full).items()}, half)
    request.addfinalizer(lambda: half.unlink(missing_ok=True))
    convert("pixart", tmp_path / "full")
    assert not (hub / "transformer" / half.name).exists()
    shutil.rmtree(hub)
    (hub / "vae").mkdir(parents=True)
    (hub / "vae" / full.name).touch()  # an encoder that somebody fetched earlier is no model
    request.addfinalizer(lambda: full.with_suffix(".away").rename(full))
    full.rename(full.with_suffix(".away"))
    convert("pixart", tmp_path / "half")
    written = load_file(tmp_path / "half" / "transformer" / full.name)
    assert all(torch.equal(tensor.half(), load_file(half)[key]) for key, tensor in written.items())


def test_encoders_are_copied_from_the_hub_and_not_loaded(
    tmp_path: Path, hub: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("an encoder went through the memory")

    monkeypatch.setattr("pixart_core.encoders.vae.load_vae", loaded)
    monkeypatch.setattr("pixart_core.encoders.text.load_text_encoder", loaded)
    convert("diffusers", tmp_path / "pipe")
    for part in ("vae", "text_encoder", "tokenizer"):
        for file in (repository / part).iterdir():
            assert (tmp_path / "pipe" / part / file.name).read_bytes() == file.read_bytes()
    pipeline = PixArtAlphaPipeline.from_pretrained(tmp_path / "pipe")
    original = PixArtTransformer2DModel.from_pretrained(repository / "transformer")
    for name, tensor in pipeline.transformer.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]), name


def test_a_cut_encoder_is_not_copied(tmp_path: Path, repository: Path) -> None:
    shutil.copytree(repository, tmp_path / "cut")
    file = tmp_path / "cut" / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"vae.*diffusion_pytorch_model\.safetensors is truncated"):
        run_conversion(ConvertStep(source=str(tmp_path / "cut"), to="diffusers"), tmp_path / "x", Silent())
    assert not (tmp_path / "x").exists()


def test_an_id_that_the_hub_does_not_give_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("no route to\nthe hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="org/model is no local path and could not be had") as error:
        convert("pixart", tmp_path / "x")
    assert "\n" not in str(error.value)
