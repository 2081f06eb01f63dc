"""Every kind of prediction from training to diffusers' pipeline: a memorised picture comes out again."""

import json

import pytest
import torch
from diffusers import PixArtAlphaPipeline
from stores import Source

from pixart_core.artifacts.feature_plan import PlannedImage
from pixart_core.conversion.convert import run_conversion
from pixart_core.encoders.analytic_vae import build_analytic_vae
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep
from pixart_core.recipe.training import ModelOptions, MuonOptions, TrainStep
from pixart_core.training.loop import run_training

PICTURE = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(7)).clamp(-1.5, 1.5)


class OnePicture(Source):
    """A store whose latents are all `PICTURE`, without noise of the VAE."""

    def moments(self, name, bucket):
        return {"mean": PICTURE.clone(), "std": torch.zeros_like(PICTURE)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "features"
    image = PlannedImage(id="a", caption="x", label=0, height=8, width=8, buckets=((8, 8),))
    OnePicture([image], {8: [(8, 8)]}).extract(folder)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    tokenizer = build_tokenizer(["a red circle"])
    build_analytic_vae(1).save_pretrained(folder / "vae")
    build_tiny_t5(len(tokenizer), width=8).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return str(folder)


def make_step(store, **changes) -> TrainStep:
    shape = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    options = {
        "features": str(store),
        "model": ModelOptions(**shape, sample_size=4, patch_size=1, learned_variance=True),
        "max_train_steps": 300,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "learning_rate": 1e-2,
        "lr_scheduler": "linear",
        "lr_warmup_steps": 20,
        "optimizer": MuonOptions(),
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "caption_dropout": 0.0,
    }
    return TrainStep(**(options | changes))


@pytest.mark.parametrize(
    ("kind", "weighting", "learned_variance", "steps"),
    [
        ("epsilon", "uniform", True, 300),
        ("epsilon", "min_snr", False, 300),
        ("v_prediction", "min_snr", True, 120),
        ("sample", "truncated_snr", False, 120),
    ],
)
def test_a_memorised_picture_comes_out_of_diffusers_pipeline(
    tmp_path, store, encoders, kind, weighting, learned_variance, steps
) -> None:
    model = make_step(store).model.model_copy(update={"learned_variance": learned_variance})
    step = make_step(
        store, model=model, prediction_type=kind, loss_weighting=weighting, max_train_steps=steps
    )
    run_training(step, tmp_path / "run", Silent())
    convert = ConvertStep(source=str(tmp_path / "run"), to="diffusers", vae=encoders, text_encoder=encoders)
    run_conversion(convert, tmp_path / "pipe", Silent())
    assert (
        json.loads((tmp_path / "pipe/scheduler/scheduler_config.json").read_text())["prediction_type"] == kind
    )
    pipeline = PixArtAlphaPipeline.from_pretrained(tmp_path / "pipe")
    pipeline.set_progress_bar_config(disable=True)
    tokens = Source.tokens("x")[None]
    latents = pipeline(
        prompt_embeds=tokens,
        prompt_attention_mask=torch.ones(tokens.shape[:2]),
        negative_prompt=None,
        num_inference_steps=20,
        guidance_scale=1.0,
        num_images_per_prompt=4,
        height=8,
        width=8,
        use_resolution_binning=False,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    error = (latents - PICTURE).square().mean() / PICTURE.square().mean()
    # A picture of another kind of prediction, or none at all, is off by 1 or much more.
    assert error < 0.2


def test_a_checkpoint_of_another_prediction_is_refused(tmp_path, store) -> None:
    run_training(
        make_step(store, max_train_steps=1, prediction_type="v_prediction"), tmp_path / "v", Silent()
    )
    other = make_step(store, model=None, init=str(tmp_path / "v"), prediction_type="sample")
    with pytest.raises(UserError, match="predicts v_prediction, the recipe says prediction_type: sample"):
        run_training(other, tmp_path / "next", Silent())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr_gamma": 3.0}, "snr_gamma bounds loss_weighting min_snr and truncated_snr"),
        ({"snr_gamma": 0.5, "loss_weighting": "truncated_snr"}, "below 1"),
        ({"loss_weighting": "min-snr"}, "min_snr"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"token_routing": {"off_for_last": 1.0}}, "off_for_last"),
        ({"token_routing": {"selection_ratio": 1.0}}, "selection_ratio"),
        ({"optimizer": {"kind": "came", "betas": (0.9, 0.999)}}, "betas"),
        ({"optimizer": {"kind": "adamw8bit", "betas": (0.9, 1.0)}}, "betas"),
    ],
)
def test_options_that_mean_nothing_are_refused(store, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_step(store, **options)
