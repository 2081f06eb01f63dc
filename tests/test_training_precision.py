"""Laws of precision and of split batches: float32 where it matters, sums that do not depend on parts."""

from functools import partial

import pytest
import torch
from stores import write_tiny_store

from pixart_core.artifacts.features import FeatureStore
from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.progress import Silent
from pixart_core.recipe.optimizers import AdamW8bitOptions, AdamWOptions, CameOptions, MuonOptions
from pixart_core.recipe.token_routing import TokenRouting
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.batches import Unconditional
from pixart_core.training.ema import Ema
from pixart_core.training.feed import micro_batches
from pixart_core.training.initial import read_folder
from pixart_core.training.optimizer import build_adamw
from pixart_core.training.order import BatchOrder
from pixart_core.training.recover import do_step
from pixart_core.training.run import open_run
from pixart_core.training.step import batch_loss, train_step

SHAPE = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 16, "sample_size": 8}


@pytest.fixture
def store(tmp_path):
    return write_tiny_store(tmp_path / "features")


def make_step(store, **changes) -> TrainStep:
    options = {
        "features": str(store),
        "model": ModelOptions(**SHAPE),
        "max_train_steps": 30,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 0,
        "mixed_precision": "bf16",
    }
    return TrainStep(**(options | changes))


def perturb(model) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", [AdamWOptions(), AdamW8bitOptions(), CameOptions(), MuonOptions()])
def test_bf16_multiplies_in_bf16_and_keeps_everything_else_in_float32(tmp_path, store, kind) -> None:
    run = open_run(make_step(store, optimizer=kind), tmp_path / "run", Silent(), read_folder)
    multiplied, losses = set(), set()
    for module in run.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, __, output: multiplied.add(output.dtype))
    loss_fn = run.loss_fn

    def watched(model, batch):
        terms = loss_fn(model, batch)
        losses.update({terms.mse.dtype, terms.vb.dtype, terms.total.dtype})
        return terms

    run.loss_fn = watched
    with run.ahead:
        do_step(run)
    assert multiplied == {torch.bfloat16}
    assert losses == {torch.float32}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in run.model.parameters()} == {torch.float32}
    assert {w.dtype for w in run.ema.weights.values()} == {torch.float32}
    kept = {
        value.dtype
        for part in run.optimizers.parts
        for state in part.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    assert kept == {torch.float32} | ({torch.uint8} if kind.kind == "adamw8bit" else set())


def test_updates_that_bf16_would_round_away_add_up(tmp_path, store) -> None:
    rate, steps = 1e-6, 10
    step = make_step(
        store, learning_rate=rate, optimizer=AdamWOptions(weight_decay=0.0, eps=1e-12), max_grad_norm=100.0
    )
    run = open_run(step, tmp_path / "run", Silent(), read_folder)
    perturb(run.model)  # of a new model, most gradients are 0
    weight = run.model.transformer_blocks[0].ff.net[0].proj.weight
    before = weight.detach().clone()
    with run.ahead:
        do_step(run)
    # The first update of Adam is the learning rate, up or down (or nothing, of a gradient that is 0).
    moved = (weight - before).abs()
    assert ((moved / rate - 1).abs() < 0.05).float().mean() > 0.99
    assert ((before + moved).bfloat16() == before.bfloat16()).float().mean() > 0.95
    with run.ahead:
        for _ in range(steps - 1):
            run.counters.step += 1
            do_step(run)
    assert (weight - before).abs().mean() > 2 * rate


def gradients(store, model_options, parts: int, routing=None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(gradients before they are used, the loss) of a batch of 8 in `parts` micro-batches."""
    features = FeatureStore(store)
    step = make_step(store, micro_batch_size=8 // parts, token_routing=routing)
    torch.manual_seed(0)
    shape = SHAPE | {"in_channels": 3, "out_channels": 6, "caption_channels": 8, "num_embeds_ada_norm": 2}
    model = build_transformer(TransformerConfig(**shape, **model_options))
    perturb(model)
    if routing is not None:
        model.routed_blocks = routing.blocks(SHAPE["num_layers"])
    optimizers = build_adamw(model, learning_rate=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    text = model.config.conditioning == "text"
    batches = micro_batches(
        step,
        features,
        BatchOrder(features.buckets, 8, seed=0),
        range(8),
        3,
        unconditional=Unconditional(features.empty_caption(), keeps_mask=False) if text else None,
        null_class=2,
        patch_size=2,
    )
    loss = partial(batch_loss, schedule=NoiseSchedule(), prediction_type="epsilon", autocast=None)
    stats = train_step(model, optimizers, Ema(model, 0.9), batches, loss, count=parts, max_grad_norm=1e9)
    return {name: p.grad for name, p in model.named_parameters()}, stats.loss


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize(
    ("options", "routing"),
    [
        ({}, None),
        ({"conditioning": "class"}, None),
        ({}, TokenRouting(start_block=1, end_block=3)),
    ],
    ids=["text", "class", "routed"],
)
def test_gradients_of_accumulated_parts_equal_those_of_the_whole(store, options, routing, parts) -> None:
    whole, loss = gradients(store, options, 1, routing)
    split, split_loss = gradients(store, options, parts, routing)
    torch.testing.assert_close(split_loss, loss, rtol=1e-6, atol=0)
    norm = torch.stack([gradient.norm() for gradient in whole.values()]).norm()
    for name, gradient in whole.items():
        # To the rounding of float32, measured against the gradient as a whole.
        assert (split[name] - gradient).norm() < 2e-6 * norm, name
