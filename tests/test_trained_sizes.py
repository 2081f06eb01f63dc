"""A model is not drawn from, silently, at sizes that it was not trained for."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from stores import write_tiny_store

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.artifacts.samples import read_samples
from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.pipeline import write_pipeline
from pixart_core.conversion.resize import resize
from pixart_core.data.buckets import bucket_table
from pixart_core.encoders.analytic_vae import build_analytic_vae
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.progress import Silent
from pixart_core.recipe.load import load_recipe
from pixart_core.recipe.schema import ConvertStep, SampleStep
from pixart_core.recipe.training import ModelOptions, Positions, TrainStep
from pixart_core.sampling.sample import run_sampling
from pixart_core.sampling.sizes import (
    Distance,
    default_size,
    how_far,
    how_to_train,
    positions_changed,
    trained_sizes,
)
from pixart_core.training.loop import run_training

CONFIG = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=3,
    out_channels=3,
    num_layers=1,
    sample_size=8,
    caption_channels=16,
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Latents of 8 behind a 2x VAE: 16 px, whatever its card says it was trained on."""
    root = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(["a red circle"])
    build_tiny_t5(len(tokenizer), width=16, num_heads=2).save_pretrained(root / "text_encoder")
    tokenizer.save_pretrained(root / "tokenizer")
    build_analytic_vae(1).save_pretrained(root / "vae")
    model = build_transformer(CONFIG)
    write_pipeline(root / "pipeline", model, ModelFacts(), vae=str(root), text_encoder=str(root))
    return root / "pipeline"


def with_facts(pipeline: Path, folder: Path, **facts) -> Path:
    copy = shutil.copytree(pipeline, folder / "copy")
    Card("pipeline", {}, {}, ModelFacts(**facts).to_details()).write(copy)
    return copy


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def sample(pipeline: Path, output: Path, *sizes: tuple[int, int], **options) -> list[str]:
    said = Said()
    options = {"prompts": ("a red circle",) * max(1, len(sizes)), "num_inference_steps": 1} | options
    run_sampling(SampleStep(checkpoint=str(pipeline), sizes=sizes, **options), output, said)
    return said.lines


@pytest.mark.parametrize(
    ("trained", "near", "far"),
    [
        (
            [(256, 256)],
            [(256, 256), (184, 184), (352, 368), (192, 384)],
            [(176, 176), (368, 368), (512, 512)],
        ),
        ([(256, 256)], [(360, 184)], [(400, 184), (176, 400)]),  # about 2:1, and more than that
        ([(64, 96), (96, 64)], [(64, 96), (96, 64), (96, 96), (80, 112)], [(128, 128), (48, 48), (32, 128)]),
        (bucket_table("paper", 1024), bucket_table("paper", 1024), [(512, 512), (2048, 2048), (256, 4096)]),
        # Two resolutions in one training: everything between them is near.
        (
            [(256, 256), (512, 512)],
            [(256, 256), (384, 384), (512, 512), (720, 720)],
            [(160, 160), (760, 760)],
        ),
    ],
)
def test_near_is_within_twice_the_pixels_and_twice_the_shape(trained, near, far) -> None:
    assert [size for size in near if how_far(size, trained) is not None] == []
    assert [size for size in far if how_far(size, trained) is None] == []


def test_released_weights_were_trained_at_their_square_or_in_the_paper_s_buckets() -> None:
    for sample_size, scale in ((32, 1.0), (64, 1.0)):
        config = dataclasses.replace(CONFIG, sample_size=sample_size, interpolation_scale=scale)
        assert trained_sizes(ModelFacts(), config, 8) == ((8 * sample_size, 8 * sample_size),)
    large = dataclasses.replace(
        CONFIG, sample_size=128, interpolation_scale=2.0, use_additional_conditions=True
    )
    sizes = trained_sizes(ModelFacts(), large, 8)
    assert [size for size in bucket_table("paper", 1024) if how_far(size, sizes)] == []
    assert how_far((512, 512), sizes) is not None
    # The same config made of a 512 px model by `convert` was trained on squares of 512.
    converted = ModelFacts(trained_positions=(64, 1.0))
    assert trained_sizes(converted, large, 8) == ((512, 512),)
    assert not positions_changed(converted, large)  # both range to 32
    assert positions_changed(ModelFacts(trained_positions=(32, 1.0)), large)
    assert default_size(large, 8, trained_sizes(converted, large, 8)) == (512, 512)


def test_a_far_size_is_refused_with_what_can_be_done(pipeline, tmp_path) -> None:
    with pytest.raises(UserError) as error:
        sample(pipeline, tmp_path / "out", (32, 32))
    message = str(error.value)
    for part in (
        f"{pipeline} was trained at 16x16; 32x32 has 4 times the pixels",
        "ask for one near",
        f"pixart convert --from {pipeline} --to pixart positions.sample_size=16) and train on",
        "or allow it with --set any_size=true",
    ):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"8x32 is 4 times as wide .* aspect_buckets"):
        sample(pipeline, tmp_path / "out", (16, 16), (8, 32))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("micro", [False, True])
@pytest.mark.parametrize("side", [256, 512, 1024, 2048])
def test_what_a_far_size_is_told_to_try_is_not_refused(micro, side) -> None:
    config = dataclasses.replace(CONFIG, use_additional_conditions=micro)
    told = how_to_train((side, side), Distance("pixels", ""), "a", config, 8)
    option, value = re.search(r"--to pixart (\S+)=(\d+)\)", told).groups()
    changes = {"positions": {"sample_size": int(value)}} if "positions" in option else {option: int(value)}
    step = ConvertStep(source="a", to="pixart", **changes)
    assert resize(step, build_transformer(config), ModelFacts()).model.config.sample_size == side // 8


def test_any_size_draws_it_says_so_once_and_records_it(pipeline, tmp_path) -> None:
    lines = sample(pipeline, tmp_path / "out", (16, 16), (32, 32), (32, 32), any_size=True)
    assert len([line for line in lines if "32x32" in line and "any_size" in line]) == 1
    assert not any("16x16 has" in line for line in lines)
    records = read_samples(tmp_path / "out")
    assert [record.untrained_size for record in records] == [False, True, True]
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [row["untrained_size"] for row in rows] == [False, True, True]
    card = Card.read(tmp_path / "out", "samples")
    assert card.details["untrained_sizes"] == [[32, 32]]
    assert card.options["any_size"] is True
    picture = Image.open(tmp_path / "out" / records[1].file)
    assert (picture.height, picture.width) == (32, 32)
    assert json.loads(picture.text["pixart"])["untrained_size"] is True


def test_the_card_s_sizes_count_and_give_the_default(pipeline, tmp_path) -> None:
    model = with_facts(pipeline, tmp_path, trained_sizes=((32, 48), (48, 32), (40, 40)))
    sample(model, tmp_path / "default")
    assert [(r.height, r.width) for r in read_samples(tmp_path / "default")] == [(40, 40)]
    with pytest.raises(UserError, match=r"trained at 32x48, 48x32, 40x40; 16x16 has 0\.17 times the pixels"):
        sample(model, tmp_path / "out", (16, 16))


def test_positions_changed_after_training_are_refused_at_every_size(pipeline, tmp_path) -> None:
    model = with_facts(pipeline, tmp_path, trained_positions=(4, 1.0), trained_sizes=((8, 8),))
    for sizes in ((), ((8, 8),), ((16, 16),)):
        with pytest.raises(UserError, match=r"trained at 8x8 with positions for sample_size 4, scale 1"):
            sample(model, tmp_path / "out", *sizes)
    lines = sample(model, tmp_path / "out", (8, 8), any_size=True)
    assert any("need training first; drawn all the same" in line for line in lines)


def test_convert_does_not_make_a_model_of_another_size_silently(pipeline, tmp_path) -> None:
    """The whole way: 16 px weights, converted to 32 px, asked for 32 px."""
    step = ConvertStep(source=str(pipeline), to="diffusers", positions={"sample_size": 16})
    run_conversion(step, tmp_path / "large", Silent())
    for sizes in ((), ((32, 32),), ((16, 16),)):
        with pytest.raises(UserError, match="since been given those for 16, 1, which need training"):
            sample(tmp_path / "large", tmp_path / "out", *sizes)
    # Interpolated, the old size is as it was and the new one is still new.
    step = ConvertStep(
        source=str(pipeline), to="diffusers", positions={"sample_size": 16, "interpolation_scale": 2.0}
    )
    run_conversion(step, tmp_path / "fine", Silent())
    sample(tmp_path / "fine", tmp_path / "same", (16, 16))
    sample(pipeline, tmp_path / "before", (16, 16))
    files = [next((tmp_path / name / "images").iterdir()) for name in ("same", "before")]
    assert list(Image.open(files[0]).getdata()) == list(Image.open(files[1]).getdata())
    with pytest.raises(UserError, match="trained at 16x16; 32x32 has 4 times"):
        sample(tmp_path / "fine", tmp_path / "out", (32, 32))


def test_a_pipeline_that_says_nothing_is_taken_at_its_config(pipeline, tmp_path) -> None:
    assert not (pipeline / "card.json").exists()
    sample(pipeline, tmp_path / "out")
    assert [(r.height, r.width, r.untrained_size) for r in read_samples(tmp_path / "out")] == [
        (16, 16, False)
    ]


def train(features: Path, output: Path, said: Silent | None = None, **changes) -> Card:
    model = ModelOptions(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8)
    options = {"max_train_steps": 1, "global_batch_size": 4, "micro_batch_size": 4, "model": model}
    run_training(TrainStep(features=str(features), **(options | changes)), output, said or Silent())
    return Card.read(output, "checkpoint")


def test_training_records_its_sizes_and_what_it_changed(tmp_path) -> None:
    small = write_tiny_store(tmp_path / "small", {(16, 16): 4, (8, 24): 4})
    large = write_tiny_store(tmp_path / "large", {(32, 32): 4})
    first = train(small, tmp_path / "first")
    assert sorted(first.details["model"]["trained_sizes"]) == [[8, 24], [16, 16]]
    assert first.details["model"]["trained_positions"] == [8, 1.0]
    assert "changed" not in first.details

    init = {"model": None, "init": str(tmp_path / "first")}
    positions = Positions(sample_size=16, interpolation_scale=1.5)
    second = train(large, tmp_path / "second", positions=positions, **init)
    assert second.details["model"]["trained_sizes"] == [[32, 32]]
    assert second.details["model"]["trained_positions"] == [16, 1.5]
    assert second.details["changed"]["resolution"]["from"]["sample_size"] == 8
    assert second.details["changed"]["resolution"]["to"]["interpolation_scale"] == 1.5

    # Without positions it trains, and says what that means.
    said = Said()
    third = train(large, tmp_path / "third", said, **init)
    assert third.details["model"]["trained_sizes"] == [[32, 32]]
    assert [line for line in said.lines if "32x32 px, the model's positions are made for 16x16" in line]


def test_the_quickstart_draws_at_sizes_that_it_trains() -> None:
    steps = load_recipe("quickstart", []).steps
    small = bucket_table("square", steps["features"].resolution)
    assert steps["samples_stage2"].sizes == ()
    assert default_size(CONFIG, 8, small) == (64, 64)
    large = bucket_table(steps["features_large"].aspect_buckets, 1)
    assert [size for size in steps["samples_stage3"].sizes if how_far(size, large)] == []
    assert default_size(dataclasses.replace(CONFIG, sample_size=48), 2, large) in large
    assert default_size(dataclasses.replace(CONFIG, sample_size=48), 2, [*large, (96, 96)]) == (96, 96)


def test_old_cards_without_sizes_are_read(pipeline, tmp_path) -> None:
    details = ModelFacts().to_details()
    for name in ("trained_sizes", "trained_positions"):
        del details["model"][name]
    copy = shutil.copytree(pipeline, tmp_path / "copy")
    Card("pipeline", {}, {}, details).write(copy)
    sample(copy, tmp_path / "out", (24, 16))
    with pytest.raises(UserError, match="trained at 16x16"):
        sample(copy, tmp_path / "far", (32, 32))


def test_micro_conditions_do_not_hide_a_far_size(pipeline, tmp_path) -> None:
    torch.manual_seed(0)
    step = ConvertStep(
        source=str(pipeline),
        to="diffusers",
        positions={"sample_size": 16, "interpolation_scale": 2.0, "use_additional_conditions": True},
    )
    result = run_conversion(step, tmp_path / "micro", Silent())
    assert any("diffusers cannot run this one" in note for note in result["notes"])
    with pytest.raises(UserError, match="trained at 16x16; 32x32"):
        sample(tmp_path / "micro", tmp_path / "out", (32, 32))
