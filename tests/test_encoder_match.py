"""Training refuses features that other encoders made than those that its checkpoint learned."""

from pathlib import Path
from typing import Any

import pytest
from stores import DETAILS, write_tiny_store

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.checkpoint import read_facts
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.loop import run_training

TINY = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "sample_size": 8}


def make_store(folder: Path, vae: str, text: str, scaling: float = 1.0) -> Path:
    write_tiny_store(folder)
    described: dict[str, Any] = {
        "vae": DETAILS["vae"] | {"hash": vae, "source": f"vaes/{vae}", "scaling_factor": scaling},
        "text_encoder": DETAILS["text_encoder"] | {"hash": text, "source": f"texts/{text}"},
    }
    Card("features", {}, {}, DETAILS | described).write(folder)
    return folder


def make_step(store: Path, **options: object) -> TrainStep:
    few = {"max_train_steps": 1, "global_batch_size": 2, "micro_batch_size": 2}
    return TrainStep.model_validate({"features": str(store), **few, **options})


def test_other_weights_or_another_scale_are_refused_until_the_recipe_says_so(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", "aaa", "ttt")
    trained = tmp_path / "trained"
    run_training(make_step(store, model=ModelOptions(**TINY)), trained, Silent())
    facts = read_facts(trained)
    assert (facts.vae_hash, facts.text_encoder_hash, facts.vae_scaling_factor) == ("aaa", "ttt", 1.0)

    cases = {
        "vae": (("bbb", "ttt", 1.0), r"VAE vaes/aaa \(weights aaa\) before, vaes/bbb \(weights bbb\)"),
        "text": (("aaa", "uuu", 1.0), r"text encoder texts/ttt \(weights ttt\) before, texts/uuu"),
        "scale": (("aaa", "ttt", 0.5), r"scaling factor of the VAE: 1 before, 0.5 in the features"),
    }
    for name, (encoders, message) in cases.items():
        other = make_store(tmp_path / f"store_{name}", *encoders)
        with pytest.raises(UserError, match=message):
            run_training(make_step(other, init=str(trained)), tmp_path / f"run_{name}", Silent())
        accepted = make_step(other, init=str(trained), allow_other_encoders=True)
        run_training(accepted, tmp_path / f"run_{name}", Silent())
        after = read_facts(tmp_path / f"run_{name}")
        assert (after.vae_hash, after.text_encoder_hash, after.vae_scaling_factor) == encoders
    run_training(make_step(store, init=str(trained)), tmp_path / "same", Silent())


def test_a_class_conditional_model_binds_nobody_to_a_text_encoder(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", "aaa", "ttt")
    options = ModelOptions(conditioning="class", **TINY)
    run_training(make_step(store, model=options), tmp_path / "dit", Silent())
    assert read_facts(tmp_path / "dit").text_encoder_hash is None
    other = make_store(tmp_path / "other", "aaa", "uuu")
    run_training(make_step(other, init=str(tmp_path / "dit")), tmp_path / "more", Silent())
    vae = make_store(tmp_path / "third", "ccc", "ttt")
    with pytest.raises(UserError, match="extract the features with the encoders of before"):
        run_training(make_step(vae, init=str(tmp_path / "dit")), tmp_path / "refused", Silent())
