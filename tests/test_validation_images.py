"""Laws of validation images: what the averaged weights draw, known before the first step to be possible."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stores import write_tiny_store
from test_validation import Stop, make_step

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.initial import run_training
from pixart_core.conversion.pipeline import write_pipeline
from pixart_core.encoders.analytic_vae import build_analytic_vae
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.sample import run_sampling
from pixart_core.training.validation_images import drawn_steps

PROMPTS = ("a red circle", "two blue squares", "a <script>")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoders")
    tokenizer = build_tokenizer(["a red circle", "two blue squares"])
    build_tiny_t5(len(tokenizer), width=8, num_heads=2).save_pretrained(root / "text_encoder")
    tokenizer.save_pretrained(root / "tokenizer")
    build_analytic_vae(1).save_pretrained(root / "vae")
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_tiny_store(tmp_path / "features", {(16, 16): 10})


def options(encoders: Path, **changes: Any) -> dict[str, Any]:
    drawing = {"every": 4, "samples": 0, "prompts": PROMPTS, "num_inference_steps": 3, "guidance_scale": 2.0}
    return drawing | {"vae": str(encoders), "text_encoder": str(encoders), "batch_size": 2} | changes


def pictures(folder: Path) -> list[np.ndarray]:
    files = sorted(folder.glob("[0-9]*.png"), key=lambda file: int(file.stem))
    return [np.asarray(Image.open(file)) for file in files]


def test_the_last_images_are_those_that_sampling_draws(tmp_path: Path, store: Path, encoders: Path) -> None:
    step = make_step(store, validation=options(encoders, sizes=((16, 16), (8, 24))), max_train_steps=6)
    run_training(step, tmp_path / "run", Silent())
    assert list(drawn_steps(tmp_path / "run")) == [4, 6]
    drawn = pictures(tmp_path / "run/validation/step_00000006")
    assert [picture.shape for picture in drawn] == [(16, 16, 3), (8, 24, 3), (16, 16, 3)]

    facts = ModelFacts(vae=str(encoders), text_encoder=str(encoders))
    model = load_transformer(tmp_path / "run")
    write_pipeline(tmp_path / "pipe", model, facts, vae=str(encoders), text_encoder=str(encoders))
    asked = SampleStep(
        checkpoint=str(tmp_path / "pipe"),
        prompts=PROMPTS,
        sizes=((16, 16), (8, 24)),
        any_size=True,
        num_inference_steps=3,
        guidance_scale=2.0,
        batch_size=2,
    )
    run_sampling(asked, tmp_path / "samples", Silent())
    sampled = [np.asarray(Image.open(tmp_path / f"samples/images/{n:06d}.png")) for n in range(3)]
    for ours, theirs in zip(drawn, sampled, strict=True):
        assert np.array_equal(ours, theirs)
    rows = (tmp_path / "run/validation/step_00000006/samples.jsonl").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == list(PROMPTS)
    assert (tmp_path / "run/validation/step_00000006/contact_sheet.png").is_file()


def test_drawing_leaves_no_trace_and_a_killed_run_draws_the_same(
    tmp_path: Path, store: Path, encoders: Path
) -> None:
    step = make_step(store, validation=options(encoders))
    run_training(make_step(store), tmp_path / "plain", Silent())
    state = torch.get_rng_state()
    run_training(step, tmp_path / "whole", Silent())
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(RuntimeError, match="plug"):
        run_training(step, tmp_path / "broken", Stop(7))
    run_training(step, tmp_path / "broken", Silent())
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert len({(tmp_path / run / name).read_bytes() for run in ("plain", "whole", "broken")}) == 1
    for number, folder in drawn_steps(tmp_path / "whole").items():
        for file in folder.iterdir():
            assert file.read_bytes() == (drawn_steps(tmp_path / "broken")[number] / file.name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "no/such/vae"}, "no/such/vae"),
        ({"text_encoder": "no/such/encoder"}, "no/such/encoder"),
        ({"sizes": ((15, 16),)}, "15x16"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_the_first_step(
    tmp_path: Path, store: Path, encoders: Path, changes: dict[str, Any], message: str
) -> None:
    step = make_step(store, validation=options(encoders, **changes))
    with pytest.raises(UserError, match=message):
        run_training(step, tmp_path / "run", Silent())
    assert not (tmp_path / "run/checkpoints").exists()


def test_an_encoder_that_is_gone_later_does_not_stop_a_run_that_has_begun(
    tmp_path: Path, store: Path, encoders: Path
) -> None:
    with pytest.raises(RuntimeError, match="plug"):
        run_training(make_step(store, validation=options(encoders)), tmp_path / "run", Stop(4))
    said: list[str] = []
    listener = Silent()
    listener.say = said.append  # type: ignore[method-assign]
    step = make_step(store, validation=options(encoders, vae="no/such/vae"))
    run_training(step, tmp_path / "run", listener)
    assert (tmp_path / "run/card.json").is_file()
    assert len([line for line in said if "no/such/vae" in line and "goes on" in line]) == 1


def test_class_conditional_models_take_no_prompts(tmp_path: Path, store: Path, encoders: Path) -> None:
    step = make_step(store, validation=options(encoders))
    assert step.model is not None
    classes = step.model_copy(update={"model": step.model.model_copy(update={"conditioning": "class"})})
    with pytest.raises(UserError, match="class-conditional"):
        run_training(classes, tmp_path / "run", Silent())
