"""Laws of the validation loss: fixed, fair to all timesteps, and without a trace in the training."""

import errno
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import write_tiny_store
from torch import nn

from pixart_core.errors import UserError
from pixart_core.models.block import TransformerBlock
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, MuonOptions, TrainStep
from pixart_core.training.averaged import evaluating
from pixart_core.training.ema import Ema
from pixart_core.training.initial import read_folder
from pixart_core.training.log import without_clock
from pixart_core.training.loop import run_training
from pixart_core.training.run import Run, open_run
from pixart_core.training.validation import ValidationLoss, fixed_batches

MODEL = ModelOptions(num_layers=2, num_attention_heads=2, attention_head_dim=8, sample_size=8)
VALIDATION = {"every": 4, "samples": 7, "bands": 4, "raw_weights": True}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_tiny_store(tmp_path / "features")


def make_step(store: Path, **changes: Any) -> TrainStep:
    options = {
        "features": str(store),
        "model": MODEL,
        "max_train_steps": 10,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 2,
        "optimizer": MuonOptions(),
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "checkpointing_steps": 3,
        "log_every": 5,
        "page": False,
    }
    return TrainStep(**(options | changes))


def rows(run: Path, name: str = "validation.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


class Stop(Silent):
    """Ends a run after some steps, as an exception out of nowhere would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left < 0:
            raise RuntimeError("pulled the plug")


def test_validation_leaves_no_trace_in_the_training(tmp_path: Path, store: Path) -> None:
    torch.manual_seed(3)
    run_training(make_step(store), tmp_path / "plain", Silent())
    state = torch.get_rng_state()
    torch.manual_seed(3)
    run_training(make_step(store, validation=VALIDATION), tmp_path / "watched", Silent())
    assert torch.equal(state, torch.get_rng_state())
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "watched" / name).read_bytes()
    logs = [rows(tmp_path / run, "log.jsonl") for run in ("plain", "watched")]
    assert [*map(without_clock, logs[0])] == [*map(without_clock, logs[1])]
    cards = [(tmp_path / run / "card.json").read_bytes() for run in ("plain", "watched")]
    assert cards[0] == cards[1]


def test_a_run_killed_and_continued_validates_as_an_undisturbed_one(tmp_path: Path, store: Path) -> None:
    step = make_step(store, validation=VALIDATION)
    run_training(step, tmp_path / "whole", Silent())
    with pytest.raises(RuntimeError, match="plug"):
        run_training(step, tmp_path / "broken", Stop(4))  # validated at 4, saved at 3
    run_training(step, tmp_path / "broken", Silent())
    whole = rows(tmp_path / "whole")
    assert whole == rows(tmp_path / "broken")
    assert [(row["step"], row["weights"]) for row in whole] == [
        (step, weights) for step in (4, 8, 10) for weights in ("ema", "raw")
    ]


def opened(store: Path, folder: Path, **changes: Any) -> Run:
    return open_run(make_step(store, validation=VALIDATION, **changes), folder, Silent(), read_folder)


def test_the_loss_of_a_band_is_that_of_its_timesteps(tmp_path: Path, store: Path) -> None:
    run = opened(store, tmp_path / "run")
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()  # predicts 0, and a variance in the middle of its range
    run.ema.load(dict(run.model.named_parameters()))
    validation = ValidationLoss(run.step.validation)  # type: ignore[arg-type]
    validation.begin(run)
    losses = validation._losses(run, "ema")
    for batch in validation.batches:
        for band in range(4):
            drawn = validation.training_batch(run, batch, band)
            assert ((drawn.timesteps >= 250 * band) & (drawn.timesteps < 250 * (band + 1))).all()
            # Squared error of predicting no noise: the mean square of the noise itself.
            mse = drawn.noise.double().square().flatten(1).mean(1)
            zero = functools.partial(_output_of_zeros, run.model.config.out_channels)
            terms = run.loss_fn(zero, drawn)  # type: ignore[arg-type]
            torch.testing.assert_close(terms.mse.double(), mse, rtol=1e-6, atol=0)
            place = slice(batch.first, batch.first + len(batch.indices))
            torch.testing.assert_close(losses[place, band], mse + terms.vb.double(), rtol=1e-6, atol=1e-7)


def _output_of_zeros(channels: int, noisy: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.zeros(len(noisy), channels, *noisy.shape[2:])


def test_every_sample_is_drawn_once_from_all_buckets() -> None:
    step = make_step(Path("x"), validation=VALIDATION | {"samples": 20})
    assert step.validation is not None
    buckets = {(16, 16): 30, (8, 24): 20, (8, 8): 1}
    batches = fixed_batches(buckets, step.validation, 3)
    places = [(batch.bucket, index) for batch in batches for index in batch.indices]
    assert len(places) == len(set(places)) == 20
    assert all(index < buckets[bucket] for bucket, index in places)
    assert {bucket for bucket, _ in places} >= {(16, 16), (8, 24)}
    assert [batch.first for batch in batches] == [
        sum(len(before.indices) for before in batches[:number]) for number in range(len(batches))
    ]
    assert batches == fixed_batches(dict(reversed(buckets.items())), step.validation, 3)


def test_weights_and_averages_are_as_before_bit_for_bit() -> None:
    model = nn.Linear(5, 3)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model.weight.add_(torch.randn(3, 5))
    before = {name: p.clone() for name, p in model.named_parameters()}
    averages = {name: p.clone() for name, p in ema.weights.items()}
    address = model.weight.data_ptr()

    def fail_inside() -> None:
        with evaluating(model, ema):
            assert not model.training
            assert not torch.is_grad_enabled()
            assert torch.equal(model.weight, averages["weight"])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert model.training
    assert torch.is_grad_enabled()
    assert model.weight.data_ptr() == address
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert torch.equal(ema.weights[name], averages[name])


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
def test_memory_that_is_short_for_an_exchange_mixes_no_weights_and_averages(monkeypatch, fails) -> None:
    model = nn.Linear(5, 3)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
    weight, average = model.weight.clone(), ema.weights["weight"].clone()
    clone, calls = torch.Tensor.clone, []

    def short(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor)
        if len(calls) == fails:
            raise torch.OutOfMemoryError
        return clone(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", short)
        with evaluating(model, ema):
            assert torch.equal(model.weight, average)
    assert len(calls) == 4
    assert torch.equal(model.weight, weight)
    assert torch.equal(ema.weights["weight"], average)


def test_nothing_is_compiled_for_a_validation(tmp_path: Path, store: Path) -> None:
    run = opened(store, tmp_path / "run")
    blocks = [module for module in run.model.modules() if isinstance(module, TransformerBlock)]

    def compiled(*_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("called")

    for block in blocks:
        block.compiled = compiled
    validation = ValidationLoss(run.step.validation)  # type: ignore[arg-type]
    validation.begin(run)
    validation._losses(run, "ema")
    assert len(blocks) == 2
    assert all(block.compiled is compiled for block in blocks)


def test_features_of_their_own_are_validated_on(tmp_path: Path, store: Path) -> None:
    heldout = write_tiny_store(tmp_path / "heldout", {(16, 16): 3})
    run_training(
        make_step(store, validation=VALIDATION | {"features": str(heldout)}), tmp_path / "a", Silent()
    )
    assert {row["samples"] for row in rows(tmp_path / "a")} == {3}
    with pytest.raises(UserError, match=r"validation\.features: nowhere"):
        run_training(
            make_step(store, validation=VALIDATION | {"features": "nowhere"}), tmp_path / "b", Silent()
        )
    assert not (tmp_path / "b/transformer").exists()


def test_a_validation_that_fails_is_told_once_and_the_training_goes_on(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    listener = Silent()
    listener.say = said.append  # type: ignore[method-assign]

    def full_disk(path: Path, row: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pixart_core.training.validation.append_row", full_disk)
    run_training(make_step(store, validation=VALIDATION), tmp_path / "run", listener)
    assert [line for line in said if "goes on" in line] == [
        "validation failed ([Errno 28] No space left on device); the training goes on"
    ]
    run_training(make_step(store), tmp_path / "plain", Silent())
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
