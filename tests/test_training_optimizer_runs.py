"""Laws of every optimiser in a training: it learns, continues bit for bit, and holds the bytes we tell."""

import math

import numpy as np
import pytest
import torch
from stores import write_tiny_store
from tiny_trainings import broken

from pixart_core.artifacts.features import FeatureStore
from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.progress import Silent
from pixart_core.recipe.costs import OPTIMIZER_BYTES
from pixart_core.recipe.optimizers import AdamW8bitOptions, AdamWOptions, CameOptions, MuonOptions
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.batches import Unconditional, make_batch
from pixart_core.training.ema import Ema
from pixart_core.training.loop import run_training
from pixart_core.training.optimizer import build_optimizers
from pixart_core.training.step import batch_loss, train_step

OPTIMIZERS = [AdamWOptions(eps=1e-8), AdamW8bitOptions(eps=1e-8), CameOptions(), MuonOptions()]
KINDS = [options.kind for options in OPTIMIZERS]
CONFIG = TransformerConfig(
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=3,
    out_channels=6,
    num_layers=2,
    sample_size=8,
    caption_channels=8,
)


def make_step(**changes) -> TrainStep:
    options = {
        "features": "x",
        "model": ModelOptions(num_layers=2, num_attention_heads=4, attention_head_dim=16, sample_size=8),
        "max_train_steps": 8,
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 2e-3,
    }
    return TrainStep(**(options | changes))


def trained(folder, options, steps: int) -> list[float]:
    """Losses of `steps` steps on random features."""
    store = FeatureStore(folder)
    torch.manual_seed(0)
    model = build_transformer(CONFIG)
    optimizers = build_optimizers(make_step(optimizer=options), model)

    def loss_fn(model, batch):
        return batch_loss(model, batch, schedule=NoiseSchedule(), prediction_type="epsilon", autocast=None)

    losses = []
    for number in range(steps):
        optimizers.set_factor(min(1.0, (number + 1) / 10))
        batch = make_batch(
            store.batch((16, 16), list(range(8))),
            range(8),
            seed=0,
            step=number,
            scaling_factor=1.0,
            shift_factor=0.0,
            dropout=0.1,
            unconditional=Unconditional(store.empty_caption(), keeps_mask=False),
            null_class=None,
        )
        stats = train_step(model, optimizers, Ema(model, 0.9), [batch], loss_fn, count=1, max_grad_norm=1.0)
        losses.append(float(stats.loss))
    return losses


def state_bytes(optimizers) -> int:
    return sum(
        value.nbytes
        for part in optimizers.parts
        for state in part.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name != "step"
    )


@pytest.mark.parametrize("options", OPTIMIZERS[1:3], ids=KINDS[1:3])
def test_a_run_of_every_optimiser_continues_bit_for_bit(tmp_path, options) -> None:
    store = write_tiny_store(tmp_path / "features")
    step = make_step(features=str(store), optimizer=options, checkpointing_steps=3, lr_warmup_steps=2)
    run_training(step, tmp_path / "whole", Silent())
    broken(step, tmp_path / "broken", 6)
    run_training(step, tmp_path / "broken", Silent())
    for file in ("optimizer", "model", "ema"):
        saved = [
            next((tmp_path / run).glob(f"**/step_00000008/{file}.safetensors")) for run in ("whole", "broken")
        ]
        assert saved[0].read_bytes() == saved[1].read_bytes(), file


def test_every_optimiser_learns_and_8_bits_learn_as_32_do(tmp_path) -> None:
    folder = write_tiny_store(tmp_path)
    end = {}
    for options in OPTIMIZERS:
        losses = trained(folder, options, steps=40)
        assert all(math.isfinite(loss) for loss in losses)
        end[options.kind] = np.mean(losses[-10:])
        assert end[options.kind] < 0.9 * losses[0]
    assert end["adamw8bit"] == pytest.approx(end["adamw"], rel=0.01)


@pytest.mark.parametrize("options", OPTIMIZERS, ids=KINDS)
def test_the_planner_knows_the_bytes_of_a_matrix_in_the_optimiser(tmp_path, options) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1024, 1024))
    optimizers = build_optimizers(make_step(optimizer=options), model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step()
    each = state_bytes(optimizers) / 1024**2
    assert each == pytest.approx(OPTIMIZER_BYTES[options.kind], rel=0.02)
