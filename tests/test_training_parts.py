"""Laws of the parts of training: order, draws, schedule, optimisers, EMA, the step."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import write_tiny_store

from pixart_core.artifacts.features import FeatureStore
from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.batches import TrainingBatch, Unconditional, drop_captions, make_batch
from pixart_core.training.ema import Ema
from pixart_core.training.muon import StackedMuon
from pixart_core.training.optimizer import build_adamw, build_muon
from pixart_core.training.order import BatchOrder
from pixart_core.training.processes import rank_slots
from pixart_core.training.schedule import learning_rate_factor
from pixart_core.training.step import LostStepError, batch_loss, train_step

CONFIG = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=3,
    out_channels=6,
    num_layers=2,
    sample_size=8,
    caption_channels=8,
)
LOSS = partial(batch_loss, schedule=NoiseSchedule(), prediction_type="epsilon", autocast=None)


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    batch=st.integers(1, 9),
    epochs=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_equally_often(counts, batch, epochs) -> None:
    buckets = {(16 * (i + 1), 16): count for i, count in enumerate(counts)}
    order = BatchOrder(buckets, batch, seed=3)
    seen: Counter = Counter()
    for step in range(order.batches_before(epochs)):
        bucket, indices = order[step]
        assert len(indices) == batch
        seen.update((bucket, int(index)) for index in indices)
    for bucket, count in buckets.items():
        drawn = [seen[bucket, index] for index in range(count)]
        # What does not fill a batch is carried on: never more than one batch behind, never a pass ahead.
        assert sum(drawn) == epochs * count // batch * batch
        assert max(drawn) - min(drawn) <= 1
        assert max(drawn) <= epochs


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    batch=st.integers(1, 9),
    number=st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_the_length_it_says_and_says_what_it_carries_over(counts, batch, number) -> None:
    buckets = {(16 * (i + 1), 16): count for i, count in enumerate(counts)}
    order = BatchOrder(buckets, batch, seed=5)
    epoch = order.epoch(number)
    batches = list(epoch)
    assert len(batches) == len(epoch)
    assert len(batches) * batch == sum(counts) + epoch.carried_in - epoch.carried_out
    assert epoch.carried_out == order.epoch(number + 1).carried_in < batch * len(counts)
    for (bucket, indices), step in zip(batches, range(epoch.first_step, 10**6), strict=False):
        assert order.epoch_of(step) == number
        assert (bucket, indices.tolist()) == (order[step][0], order[step][1].tolist())
    seen = Counter((bucket, int(index)) for bucket, indices in batches for index in indices)
    # Only a sample that the epoch before left over can come a second time.
    assert sum(times - 1 for times in seen.values()) <= epoch.carried_in
    with pytest.raises(IndexError, match=f"of {len(epoch)}"):
        epoch[len(epoch)]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_take_equal_parts_that_together_are_the_batch(world) -> None:
    step = TrainStep(
        features="x", model=ModelOptions(), max_train_steps=1, global_batch_size=24, micro_batch_size=2
    )
    parts = [rank_slots(step, SimpleNamespace(num_processes=world, process_index=r)) for r in range(world)]
    assert [slot for part in parts for slot in part] == list(range(24))
    assert {len(part) for part in parts} == {24 // world}
    with pytest.raises(UserError, match="24 is not a multiple of 5 processes"):
        rank_slots(step, SimpleNamespace(num_processes=5, process_index=0))


@pytest.mark.parametrize(
    ("processes", "asked", "at_once"),
    [(1, 12, 12), (2, 12, 12), (3, 12, 8), (4, 5, 3), (8, 12, 3), (24, 12, 1)],
)
def test_a_process_computes_at_most_the_micro_batch_and_equal_ones(processes, asked, at_once) -> None:
    step = TrainStep(
        features="x", model=ModelOptions(), max_train_steps=1, global_batch_size=24, micro_batch_size=12
    )
    step = step.model_copy(update={"micro_batch_size": asked})
    assert step.micro_batch_of(processes) == at_once
    assert 24 % (processes * at_once) == 0


def test_a_step_can_be_asked_for_without_those_before_it() -> None:
    buckets = {(16, 16): 23, (8, 32): 5}
    walked, jumped = BatchOrder(buckets, 4, seed=1), BatchOrder(buckets, 4, seed=1)
    batches = [walked[step] for step in range(40)]
    for step in (39, 7, 22):
        bucket, indices = jumped[step]
        assert bucket == batches[step][0]
        assert indices.tolist() == batches[step][1].tolist()
    other = [BatchOrder(buckets, 4, seed=2)[step][1].tolist() for step in range(5)]
    assert other != [indices.tolist() for _, indices in batches[:5]]


def test_learning_rate_warms_up_and_ends_where_it_should() -> None:
    factor = partial(learning_rate_factor, warmup_steps=10, max_train_steps=100, min_fraction=0.05)
    assert factor(0, scheduler="constant") == pytest.approx(0.1)
    assert factor(9, scheduler="cosine") == factor(99, scheduler="constant") == 1.0
    assert factor(99, scheduler="cosine") == pytest.approx(0.05)
    assert factor(99, scheduler="linear") == pytest.approx(0.05)
    assert factor(10, scheduler="linear") == factor(10, scheduler="cosine") == 1.0
    # Halfway between peak and end: both are halfway down.
    half = partial(factor, (10 + 99) / 2)
    assert half(scheduler="linear") == pytest.approx(half(scheduler="cosine")) == pytest.approx(0.525)
    for scheduler in ("linear", "cosine"):
        values = [factor(step, scheduler=scheduler) for step in range(10, 100)]
        assert values == sorted(values, reverse=True)


def tiny_batch(store, slots, step=5, dropout=0.5, **changes):
    options = {
        "unconditional": Unconditional(store.empty_caption(), keeps_mask=False),
        "null_class": None,
    } | changes
    return make_batch(
        store.batch((16, 16), list(slots)),
        slots,
        seed=0,
        step=step,
        scaling_factor=1.0,
        shift_factor=0.0,
        dropout=dropout,
        **options,
    )


def test_draws_depend_on_the_place_and_step_not_on_how_a_batch_is_split(tmp_path) -> None:
    store = FeatureStore(write_tiny_store(tmp_path))
    whole, half = tiny_batch(store, range(8)), tiny_batch(store, range(4, 8))
    for name in ("latents", "noise", "timesteps"):
        assert torch.equal(getattr(whole, name)[4:], getattr(half, name))
    assert len(set(whole.timesteps.tolist())) > 4
    assert not torch.equal(whole.noise, tiny_batch(store, range(8), step=6).noise)
    assert torch.equal(whole.mask[4:, : half.mask.shape[1]], half.mask)


def test_dropped_captions_become_the_empty_one_and_dropped_labels_the_null_class(tmp_path) -> None:
    store = FeatureStore(write_tiny_store(tmp_path))
    empty = store.empty_caption()
    batch = tiny_batch(store, range(8), dropout=1.0)
    assert batch.mask.sum(1).tolist() == [len(empty)] * 8
    torch.testing.assert_close(batch.text[:, : len(empty)], empty.expand(8, -1, -1))
    labels = tiny_batch(store, range(8), dropout=1.0, unconditional=None, null_class=2)
    assert labels.labels.tolist() == [2] * 8
    assert labels.text is None


def test_the_learned_unconditional_keeps_the_length_of_the_caption() -> None:
    text, mask = torch.ones(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    learned = torch.arange(20.0).view(5, 4)
    dropped, same = drop_captions(text, mask, torch.tensor([True, False]), Unconditional(learned, True))
    assert torch.equal(dropped[0], learned[:3])
    assert torch.equal(dropped[1], text[1])
    assert torch.equal(same, mask)
    longer, wide = drop_captions(
        text, mask, torch.tensor([True, False]), Unconditional(learned, keeps_mask=False)
    )
    assert wide.sum(1).tolist() == [5, 1]
    assert torch.equal(longer[0], learned)


def make_state(optimizer="adamw"):
    torch.manual_seed(0)
    model = build_transformer(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    options = {"learning_rate": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.03}
    if optimizer == "muon":
        built = build_muon(model, adamw_learning_rate=1e-3, momentum=0.9, **options)
    else:
        built = build_adamw(model, **options)
    return model, built, Ema(model, 0.9)


def run_step(state, batches, **options):
    return train_step(*state, batches, LOSS, count=len(batches), **({"max_grad_norm": 1.0} | options))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_equals_one_large_batch(tmp_path, optimizer) -> None:
    store = FeatureStore(write_tiny_store(tmp_path))
    a, b = make_state(optimizer), make_state(optimizer)
    one = run_step(a, [tiny_batch(store, range(8))])
    two = run_step(b, [tiny_batch(store, range(4)), tiny_batch(store, range(4, 8))])
    torch.testing.assert_close(one.loss, two.loss)
    # Muon orthogonalises in bf16 and AdamW divides by tiny gradients: equal to rounding, not to the bit.
    for name, parameter in a[0].state_dict().items():
        torch.testing.assert_close(parameter, b[0].state_dict()[name], rtol=0, atol=5e-4, msg=name)


def test_a_non_finite_loss_changes_nothing_and_names_the_samples(tmp_path) -> None:
    store = FeatureStore(write_tiny_store(tmp_path))
    model, optimizers, ema = make_state()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    batch = tiny_batch(store, range(2))
    bad = TrainingBatch(**(vars(batch) | {"latents": batch.latents * float("nan")}))
    bad.latents[1] = batch.latents[1]
    with pytest.raises(LostStepError) as lost:
        run_step((model, optimizers, ema), [bad])
    assert lost.value.samples == ["16x16-0"]
    assert lost.value.stats.lost
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, before[name])
        assert torch.equal(ema.weights[name], before[name])


def test_gradients_are_clipped(tmp_path) -> None:
    store = FeatureStore(write_tiny_store(tmp_path))
    state = make_state()
    stats = run_step(state, [tiny_batch(store, range(8))], max_grad_norm=1e-3)
    norm = torch.stack([p.grad.norm() for p in state[0].parameters() if p.grad is not None]).norm()
    assert float(stats.grad_norm) > 1e-3
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_muon_takes_the_hidden_matrices_and_nothing_else() -> None:
    model, optimizers, _ = make_state("muon")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = ([names[id(p)] for p in part.param_groups[0]["params"]] for part in optimizers.parts)
    assert sorted(muon + adamw) == sorted(names.values())
    assert {"transformer_blocks.0.attn1.to_q.weight", "adaln_single.linear.weight"} <= set(muon)
    assert {"transformer_blocks.0.scale_shift_table", "proj_out.weight", "pos_embed.proj.weight"} <= set(
        adamw
    )
    assert "caption_projection.linear_1.weight" in adamw
    assert all(name.endswith(".weight") for name in muon)


@pytest.mark.parametrize("rule", ["match_rms_adamw", "original"])
def test_stacked_muon_is_torchs_muon_to_the_bit(rule) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 8), (24, 8), (8, 24), (24, 8)]
    ours, theirs = ([torch.nn.Parameter(torch.full(shape, 0.1)) for shape in shapes] for _ in range(2))
    options = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "adjust_lr_fn": rule}
    a, b = StackedMuon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        a.step()
        b.step()
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one, two)
    b.load_state_dict(a.state_dict())


def test_ema_is_the_closed_form() -> None:
    model = torch.nn.Linear(2, 1)
    ema = Ema(model, decay=0.9)
    first = model.weight.detach().clone()
    with torch.no_grad():
        for _ in range(3):
            model.weight.add_(1.0)
            ema.update(model)
    expected = 0.9**3 * first + 0.1 * (0.81 * (first + 1) + 0.9 * (first + 2) + (first + 3))
    torch.testing.assert_close(ema.weights["weight"], expected)
