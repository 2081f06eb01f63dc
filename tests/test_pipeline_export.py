"""`convert --to diffusers`: a folder that diffusers loads and samples from without us."""

import json

import original_layouts as original
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PixArtAlphaPipeline
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pixart_core.artifacts.card import Card, card_for
from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.info import describe
from pixart_core.encoders.analytic_vae import build_analytic_vae
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import save_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep


@pytest.fixture(scope="module")
def t5_encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    tokenizer = build_tokenizer(["a red circle"])
    build_analytic_vae(1).save_pretrained(folder / "vae")
    build_tiny_t5(len(tokenizer), width=original.CAPTION).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def bert_encoder(tmp_path_factory):
    """Model and tokenizer in one folder, as sentence encoders come."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    size = {"hidden_size": original.CAPTION, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), intermediate_size=16, **size)).save_pretrained(folder)
    return folder


def make_checkpoint(folder, **facts):
    config = TransformerConfig(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        sample_size=8,
        caption_channels=original.CAPTION,
    )
    config = TransformerConfig(**{**vars(config), "in_channels": 3, "out_channels": 6})
    torch.manual_seed(0)
    model = build_transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_transformer(config, model.state_dict(), folder / "transformer")
    step = ConvertStep(source="x", to="pixart")
    card_for("checkpoint", step, ModelFacts(**facts).to_details()).write(folder)
    return model


def convert(source, output, **options):
    return run_conversion(ConvertStep(source=str(source), to="diffusers", **options), output, Silent())


def sample(folder, prompt="a red circle", **options):
    pipeline = PixArtAlphaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, pipeline(
        prompt,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        use_resolution_binning=False,
        clean_caption=False,
        output_type="np",
        **options,
    ).images


@pytest.mark.parametrize("encoder", ["t5", "bert"])
def test_diffusers_loads_and_samples_from_the_folder(tmp_path, t5_encoders, bert_encoder, encoder) -> None:
    model = make_checkpoint(tmp_path / "ours", prediction_type="v_prediction", max_tokens=16)
    text = t5_encoders if encoder == "t5" else bert_encoder
    result = convert(tmp_path / "ours", tmp_path / "pipe", vae=str(t5_encoders), text_encoder=str(text))
    pipeline, images = sample(tmp_path / "pipe", max_sequence_length=16)
    assert images.shape == (1, 16, 16, 3)
    assert abs(images - sample(tmp_path / "pipe", "circle a a", max_sequence_length=16)[1]).max() > 0
    assert result["size"] == {"sample_size": 8, "height": 16, "width": 16}
    for name, tensor in pipeline.transformer.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.solver_order) == ("v_prediction", 2)
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("linear", 1e-4, 0.02)
    assert type(pipeline.text_encoder).__name__ == ("T5EncoderModel" if encoder == "t5" else "BertModel")
    assert Card.read(tmp_path / "pipe", "pipeline").details["size"]["height"] == 16
    readme = (tmp_path / "pipe" / "README.md").read_text()
    assert "use_resolution_binning=False" in readme
    assert "max_sequence_length=16" in readme


def test_encoder_files_are_copied_byte_for_byte(tmp_path, t5_encoders) -> None:
    make_checkpoint(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "pipe", vae=str(t5_encoders), text_encoder=str(t5_encoders))
    for part in ("vae", "text_encoder", "tokenizer"):
        files = sorted(path.name for path in (t5_encoders / part).iterdir())
        assert files == sorted(path.name for path in (tmp_path / "pipe" / part).iterdir())
        for name in files:
            assert (t5_encoders / part / name).read_bytes() == (tmp_path / "pipe" / part / name).read_bytes()


def test_a_pipeline_is_read_back_with_its_own_encoders(tmp_path, t5_encoders) -> None:
    make_checkpoint(tmp_path / "ours", prediction_type="sample", max_tokens=16)
    encoders = {"vae": str(t5_encoders), "text_encoder": str(t5_encoders)}
    convert(tmp_path / "ours", tmp_path / "first", **encoders)
    (tmp_path / "first").rename(tmp_path / "moved")
    _, facts, report = load_any(tmp_path / "moved")
    assert (facts.prediction_type, facts.max_tokens) == ("sample", 16)
    assert facts.vae == facts.text_encoder == str(tmp_path / "moved")
    assert "pipeline" in report.format
    convert(tmp_path / "moved", tmp_path / "second")
    (_, a), (_, b) = sample(tmp_path / "moved"), sample(tmp_path / "second")
    assert (a == b).all()
    # A pipeline saved by diffusers has no card of ours; the scheduler tells the prediction type.
    PixArtAlphaPipeline.from_pretrained(tmp_path / "moved").save_pretrained(tmp_path / "theirs")
    assert load_any(tmp_path / "theirs").facts.prediction_type == "sample"
    assert describe(tmp_path / "theirs")["container"] == "pipeline"


def test_equal_conversions_have_equal_cards(tmp_path, t5_encoders) -> None:
    encoders = {"vae": str(t5_encoders), "text_encoder": str(t5_encoders)}
    for name in ("a", "b"):
        make_checkpoint(tmp_path / name / "ours")
        convert(tmp_path / name / "ours", tmp_path / name / "pipe", **encoders)
    assert (tmp_path / "a/pipe/card.json").read_bytes() == (tmp_path / "b/pipe/card.json").read_bytes()


def test_encoders_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path, t5_encoders) -> None:
    make_checkpoint(tmp_path / "ours")
    four = AutoencoderKL(latent_channels=4, block_out_channels=(32,))
    four.save_pretrained(tmp_path / "vae4")
    narrow = build_tokenizer(["a"])
    build_tiny_t5(len(narrow), width=8).save_pretrained(tmp_path / "narrow" / "text_encoder")
    narrow.save_pretrained(tmp_path / "narrow" / "tokenizer")
    good = str(t5_encoders)
    cases = [
        ({"vae": str(tmp_path / "vae4"), "text_encoder": good}, "4 latent channels"),
        ({"vae": good, "text_encoder": str(tmp_path / "narrow")}, "width 8"),
        ({"vae": str(tmp_path / "nowhere"), "text_encoder": good}, "nowhere"),
        ({"vae": str(tmp_path), "text_encoder": good}, "neither"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "ours", tmp_path / "pipe", **options)
        assert not (tmp_path / "pipe").exists()
    shifted = json.loads((t5_encoders / "vae" / "config.json").read_text()) | {"shift_factor": 0.1}
    vae = tmp_path / "shifted"
    AutoencoderKL.from_config(shifted).save_pretrained(vae)
    with pytest.raises(UserError, match="shift_factor"):
        convert(tmp_path / "ours", tmp_path / "pipe", vae=str(vae), text_encoder=good)


def test_the_pipeline_takes_other_schedulers(tmp_path, t5_encoders) -> None:
    make_checkpoint(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "pipe", vae=str(t5_encoders), text_encoder=str(t5_encoders))
    pipeline = PixArtAlphaPipeline.from_pretrained(tmp_path / "pipe")
    assert DDIMScheduler.from_config(pipeline.scheduler.config).config.beta_end == 0.02
