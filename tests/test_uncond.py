"""What an empty caption is, learned or encoded, is stored everywhere and never guessed."""

from pathlib import Path

import original_layouts as original
import pytest
import torch
from stores import write_tiny_store
from tiny_encoders import write_tiny_encoders
from tiny_pipelines import open_model

from pixart_cli.runners import RUNNERS
from pixart_core.artifacts.card import Card, read_card
from pixart_core.artifacts.uncond import read_uncond, write_uncond
from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.info import describe
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.sampling.outline import read_outline
from pixart_core.training.loop import run_training

HEADS = {"num_attention_heads": original.HEADS}
UNCOND = "uncond.safetensors"


def convert(source: Path, to: str, output: Path, **options) -> dict:
    return run_conversion(ConvertStep(source=str(source), to=to, **options), output, Silent())


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> str:
    return str(write_tiny_encoders(tmp_path_factory.mktemp("encoders")))


@pytest.fixture
def released(tmp_path) -> tuple[Path, torch.Tensor]:
    """An official file and the learned embedding in it."""
    weights = original.make_weights("pixart")
    torch.save({"state_dict": weights}, tmp_path / "PixArt.pth")
    return tmp_path / "PixArt.pth", weights["y_embedder.y_embedding"]


def uncond_of(folder: Path) -> str:
    return read_card(folder)["details"]["model"]["uncond"]


def test_a_learned_embedding_goes_round_all_layouts_bit_for_bit(tmp_path, encoders, released) -> None:
    file, y_embedding = released
    assert describe(file)["uncond"] == "learned"
    convert(file, "pixart", tmp_path / "a", **HEADS)
    result = convert(tmp_path / "a", "diffusers", tmp_path / "b", vae=encoders, text_encoder=encoders)
    assert any("diffusers encodes the empty one instead" in note for note in result["notes"])
    convert(tmp_path / "b", "pixart", tmp_path / "c")
    convert(tmp_path / "c", "official", tmp_path / "d")
    convert(tmp_path / "d", "pixart", tmp_path / "e")
    for name in "abcde":
        assert uncond_of(tmp_path / name) == "learned", name
        assert describe(tmp_path / name)["uncond"] == "learned"
        assert torch.equal(load_any(tmp_path / name).report.y_embedding, y_embedding), name
    sampled = open_model(tmp_path / "b", ["a red circle"])
    assert torch.equal(sampled.learned_uncond, y_embedding)
    assert sampled.encoded(["a red circle"], "")[1] is None


def test_an_empty_caption_goes_round_all_layouts_and_nothing_is_made_up(tmp_path, encoders, released) -> None:
    weights = torch.load(released[0], weights_only=True)["state_dict"]
    del weights["y_embedder.y_embedding"]
    torch.save({"state_dict": weights}, tmp_path / "without.pth")
    convert(tmp_path / "without.pth", "pixart", tmp_path / "a", **HEADS)
    result = convert(tmp_path / "a", "official", tmp_path / "b")
    assert any("y_embedding is zeros" in note for note in result["notes"])
    convert(tmp_path / "b", "pixart", tmp_path / "c")
    result = convert(tmp_path / "c", "diffusers", tmp_path / "d", vae=encoders, text_encoder=encoders)
    assert not any("diffusers" in note for note in result["notes"])
    for name in "abcd":
        assert uncond_of(tmp_path / name) == "empty", name
        assert not (tmp_path / name / UNCOND).exists()
    sampled = open_model(tmp_path / "d", ["a red circle"])
    assert sampled.learned_uncond is None
    assert sampled.encoded(["a red circle"], "")[1] is not None


@pytest.mark.parametrize("to", ["pixart", "diffusers", "official"])
def test_a_lost_learned_embedding_is_named_by_every_conversion(tmp_path, encoders, released, to) -> None:
    convert(released[0], "pixart", tmp_path / "a", **HEADS)
    (tmp_path / "a" / UNCOND).unlink()
    options = {"vae": encoders, "text_encoder": encoders} if to == "diffusers" else {}
    with pytest.raises(UserError, match=rf"a was trained with a learned .* no {UNCOND} beside it"):
        convert(tmp_path / "a", to, tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()


def test_another_model_s_learned_embedding_is_refused_before_sampling(tmp_path, encoders, released) -> None:
    convert(released[0], "diffusers", tmp_path / "a", vae=encoders, text_encoder=encoders, **HEADS)
    write_uncond(tmp_path / "a", torch.zeros(6, original.CAPTION + 1))
    with pytest.raises(UserError, match=r"tokens of width 21, the model takes 20"):
        read_outline(str(tmp_path / "a"))


@pytest.fixture
def store(tmp_path) -> Path:
    return write_tiny_store(tmp_path / "features", {(16, 16): 8})


def make_step(store: Path, **changes) -> TrainStep:
    model = ModelOptions(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8)
    options = {"max_train_steps": 2, "global_batch_size": 4, "micro_batch_size": 4, "model": model}
    return TrainStep(features=str(store), **(options | changes))


def train(store: Path, output: Path, run=run_training, **changes) -> Card:
    if "init" in changes:
        changes |= {"model": None, "init": str(changes["init"])}
    run(make_step(store, **changes), output, Silent())
    return Card.read(output, "checkpoint")


def test_training_keeps_or_changes_it_and_says_so(tmp_path, store) -> None:
    assert train(store, tmp_path / "empty").details["model"]["uncond"] == "empty"
    assert not (tmp_path / "empty" / UNCOND).exists()

    to_learned = train(store, tmp_path / "learned", init=tmp_path / "empty", uncond="learned")
    assert to_learned.details["changed"] == {"uncond": {"from": "empty", "to": "learned"}}
    embedding = read_uncond(tmp_path / "learned")
    assert embedding.shape == (120, 8)
    # Fixed at random, as the released one: N(0, 1 / width).
    assert embedding.std() == pytest.approx(8**-0.5, rel=0.1)

    kept = train(store, tmp_path / "kept", init=tmp_path / "learned", seed=5)
    assert "changed" not in kept.details
    assert torch.equal(read_uncond(tmp_path / "kept"), embedding)

    back = train(store, tmp_path / "back", init=tmp_path / "learned", uncond="empty")
    assert back.details["changed"] == {"uncond": {"from": "learned", "to": "empty"}}
    assert back.details["model"]["uncond"] == "empty"
    assert not (tmp_path / "back" / UNCOND).exists()


def test_training_does_not_replace_a_lost_embedding_by_a_new_one(tmp_path, store) -> None:
    train(store, tmp_path / "learned", uncond="learned")
    (tmp_path / "learned" / UNCOND).unlink()
    for uncond in (None, "learned"):
        with pytest.raises(UserError, match=rf"learned was trained with .* no {UNCOND}"):
            train(store, tmp_path / "next", init=tmp_path / "learned", uncond=uncond)
    assert train(store, tmp_path / "next", init=tmp_path / "learned", uncond="empty")


def test_an_embedding_that_is_too_short_for_the_features_is_refused(tmp_path, store) -> None:
    train(store, tmp_path / "learned", uncond="learned")
    write_uncond(tmp_path / "learned", torch.randn(77, 8))
    with pytest.raises(UserError, match=r"has 77 tokens of width 8, .* up to 120 .* max_tokens=77"):
        train(store, tmp_path / "next", init=tmp_path / "learned")
    for damaged in (torch.randn(8), torch.randn(0, 8)):
        write_uncond(tmp_path / "learned", damaged)
        with pytest.raises(UserError, match=r"uncond\.safetensors is damaged: y_embedding has shape"):
            train(store, tmp_path / "next", init=tmp_path / "learned")


def test_training_starts_from_an_official_file_with_its_embedding(tmp_path, store) -> None:
    train(store, tmp_path / "first", uncond="learned")
    convert(tmp_path / "first", "official", tmp_path / "official")
    file = tmp_path / "official/pixart.pth"
    card = train(store, tmp_path / "second", RUNNERS["train"], init=file)
    assert card.details["model"]["uncond"] == "learned"
    assert torch.equal(read_uncond(tmp_path / "second"), read_uncond(tmp_path / "first"))
    # The same start as from the checkpoint itself: equal weights after equal steps.
    train(store, tmp_path / "direct", RUNNERS["train"], init=tmp_path / "first")
    direct, second = (load_transformer(tmp_path / name).state_dict() for name in ("direct", "second"))
    assert all(torch.equal(direct[name], second[name]) for name in direct)


def test_what_cannot_be_a_start_is_one_clear_error(tmp_path, store, released) -> None:
    with pytest.raises(
        UserError, match=r"PixArt\.pth is a file; .* pixart convert --from .*PixArt\.pth --to pixart"
    ):
        train(store, tmp_path / "run", init=released[0])
    with pytest.raises(UserError, match=r"give num_attention_heads to `pixart convert --from .*PixArt\.pth"):
        train(store, tmp_path / "run", RUNNERS["train"], init=released[0])
    with pytest.raises(UserError, match="no such file or folder"):
        train(store, tmp_path / "run", RUNNERS["train"], init=tmp_path / "nowhere.pth")
    assert not (tmp_path / "run").exists()
