"""Features of CLIP and DINOv2 against float64 on tiny random models, and whose weights are called what."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vision import save_clip, save_dinov2
from transformers import CLIPModel, Dinov2Model, ViTConfig, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pixart_core.errors import UserError
from pixart_core.evaluation.clip_score import load_clip
from pixart_core.evaluation.extractors import cmmd_extractor, dinov2_extractor, features_extractor

CPU = torch.device("cpu")


def pictures(count: int = 3) -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(40, 24), (33, 57), (64, 64)]
    return [
        Image.fromarray(random.integers(0, 256, (*sizes[i % 3], 3), dtype=np.uint8)) for i in range(count)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"clip": save_clip(root / "tiny-clip"), "dinov2": save_dinov2(root / "tiny-dinov2")}


def test_clip_score_is_the_cosine_of_both_towers_in_float64(models: dict[str, Path]) -> None:
    scorer = load_clip(str(models["clip"]), CPU)
    prompts = ["a red circle", "the small blue square on white"]
    model = CLIPModel.from_pretrained(models["clip"]).double()
    tokens = scorer.tokenizer(prompts, padding=True, return_tensors="pt")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    pixels = CLIPImageProcessorPil(**size)(images=pictures(), return_tensors="pt")["pixel_values"].double()
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits_per_image / model.logit_scale.exp()
    found = scorer.images(pictures()) @ scorer.texts(prompts, 1).T
    np.testing.assert_allclose(found, logits.numpy(), atol=2e-6)
    assert np.abs(found).max() < 1
    assert scorer.images.protocol == "clip/tiny-clip-cos@1"
    assert not scorer.images.standard


def test_clip_tells_of_prompts_that_are_longer_than_it_reads(models: dict[str, Path]) -> None:
    scorer = load_clip(str(models["clip"]), CPU)
    long = "a red circle " * 30
    assert scorer.cut_off(["a red circle", long]) == 1
    assert np.isfinite(scorer.texts([long], 4)).all()


def test_cmmd_embeddings_have_length_one_and_are_those_of_clip(models: dict[str, Path]) -> None:
    extractor = cmmd_extractor(str(models["clip"]), CPU)
    square = Image.fromarray(np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    found = extractor([square, *pictures()])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    # A picture of the network's own size is prepared alike by both protocols.
    np.testing.assert_allclose(found[0], load_clip(str(models["clip"]), CPU).images([square])[0], atol=1e-6)
    assert (extractor.protocol, extractor.dimensions) == ("cmmd/tiny-clip@1", 16)


def test_dinov2_resamples_positions_as_its_own_code_does(models: dict[str, Path]) -> None:
    extractor = dinov2_extractor(str(models["dinov2"]), CPU)
    model = Dinov2Model.from_pretrained(models["dinov2"]).double()
    # facebookresearch/dinov2, vision_transformer.py: 0.1 is added "to avoid floating point error".
    positions = model.embeddings.position_embeddings.data
    patches = positions[:, 1:].reshape(1, 5, 5, 24).permute(0, 3, 1, 2)
    scale = (16.1 / 5, 16.1 / 5)
    resampled = torch.nn.functional.interpolate(patches, scale_factor=scale, mode="bicubic")
    flat = resampled.permute(0, 2, 3, 1).reshape(1, 256, 24)
    model.embeddings.position_embeddings.data = torch.cat([positions[:, :1], flat], 1)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    resized = [image.resize((224, 224), Image.Resampling.BICUBIC) for image in pictures()]
    pixels = np.stack([(np.asarray(image) / 255 - mean) / std for image in resized])
    with torch.no_grad():
        theirs = model(pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2)).last_hidden_state[:, 0]
    np.testing.assert_allclose(extractor(pictures()), theirs.numpy(), atol=2e-4)
    assert extractor.protocol == "fd-dinov2/tiny-dinov2@1"


def test_only_the_known_networks_carry_the_known_names(tmp_path: Path) -> None:
    # Named like the standard download, but it is another network.
    scorer = load_clip(str(save_clip(tmp_path / "clip-vit-base-patch32")), CPU)
    assert not scorer.images.standard
    assert scorer.images.protocol == "clip/clip-vit-base-patch32-cos@1"


def test_other_weights_have_another_cache(tmp_path: Path, models: dict[str, Path]) -> None:
    other = load_clip(str(save_clip(tmp_path / "tiny-clip", seed=1)), CPU).images
    same = load_clip(str(models["clip"]), CPU).images
    assert other.protocol == same.protocol
    assert other.id != same.id
    assert other.weights != same.weights


def test_missing_weights_are_one_line_with_name_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError) as error:
        load_clip("openai/clip-vit-base-patch32", CPU)
    assert str(error.value).startswith("bench clip needs openai/clip-vit-base-patch32 (605 MB): no folder")
    assert "\n" not in str(error.value)


def test_pixel_features_are_area_averages_at_any_size() -> None:
    extractor = features_extractor("pixels-8x8", CPU)
    cells = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(np.kron(cells, np.ones((*scale, 1), np.uint8))) for scale in [(8, 8), (14, 10)]]
    np.testing.assert_allclose(extractor(images), np.stack([cells.ravel() / 255] * 2), atol=1e-12)


def test_vision_model_gives_its_pooled_output_and_its_name(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(tmp_path / "tiny-vit")
    size = {"height": 32, "width": 32}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True}
    (tmp_path / "tiny-vit/preprocessor_config.json").write_text(json.dumps(processor))
    extractor = features_extractor(str(tmp_path / "tiny-vit"), CPU)
    features = extractor(pictures(5))
    assert features.shape == (5, extractor.dimensions) == (5, 32)
    # One image alone gives the same features as in its batch.
    np.testing.assert_allclose(features[3:4], extractor(pictures(5)[3:4]), atol=1e-5)
    assert extractor.protocol == "frechet/tiny-vit"
    # Another scaling before equal weights is another cache.
    (tmp_path / "tiny-vit/preprocessor_config.json").write_text(
        json.dumps(processor | {"do_normalize": False})
    )
    assert features_extractor(str(tmp_path / "tiny-vit"), CPU).id != extractor.id


def test_unknown_extractor_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features"):
        features_extractor(str(tmp_path / "nothing"), CPU)
