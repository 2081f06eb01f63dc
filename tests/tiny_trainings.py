"""Tiny trainings for tests, and a listener that does something after a step."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, MuonOptions, TrainStep
from pixart_core.training.loop import run_training
from pixart_core.training.state import saved_states, step_of


def make_step(store: Path | str, **changes) -> TrainStep:
    options = {
        "features": str(store),
        "model": ModelOptions(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8),
        "max_train_steps": 6,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 2,
        "optimizer": MuonOptions(eps=1e-3),  # Adam divides rounding by rounding where eps is tiny
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "checkpointing_steps": 2,
        "log_every": 2,
        "page": False,
    }
    return TrainStep(**(options | changes))


class At(Silent):
    """Does something after a step, and keeps what is said."""

    def __init__(self, step: int = -1, then=lambda: None) -> None:
        self.left, self.then = step, then
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left == 0 and units:
            self.then()


class PulledError(Exception):
    """The plug was pulled."""


def pull() -> None:
    raise PulledError


def broken(step: TrainStep, output: Path, after: int) -> None:
    with pytest.raises(PulledError):
        run_training(step, output, At(after, pull))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "transformer/diffusion_pytorch_model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    assert weights(a).keys() == weights(b).keys()
    assert [name for name, tensor in weights(a).items() if not torch.equal(tensor, weights(b)[name])] == []


def states(output: Path) -> list[int]:
    return [step_of(state) for state in saved_states(output / "checkpoints")]
