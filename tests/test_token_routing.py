"""Token routing: what tokens do, how they are drawn, what it saves, and that nothing else changes."""

from pathlib import Path

import pytest
import torch
from random_models import COMBINATIONS, conditions, random_model
from safetensors.torch import load_file
from stores import write_tiny_store
from torch.utils.flop_counter import FlopCounterMode

from pixart_core.artifacts.features import FeatureStore
from pixart_core.errors import UserError
from pixart_core.models.block import TransformerBlock
from pixart_core.progress import Silent
from pixart_core.recipe.estimate import estimate_training
from pixart_core.recipe.model_counts import Interface, forward_flops, training_flops
from pixart_core.recipe.token_routing import TokenRouting
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.batches import Unconditional
from pixart_core.training.feed import micro_batches
from pixart_core.training.loop import run_training
from pixart_core.training.order import BatchOrder
from pixart_core.training.pace import batch_flops
from pixart_core.training.routing import draw_kept_tokens

LAYERS = 5
ROUTED = range(1, 4)
TOKENS = 64  # of latents of 16 x 16
KEPT = torch.stack(
    [torch.randperm(TOKENS, generator=torch.Generator().manual_seed(s))[:24] for s in range(3)]
)


def model_of(combination, **changes):
    conditioning, modulation = combination
    model = random_model(conditioning=conditioning, modulation=modulation, num_layers=LAYERS, **changes)
    model.routed_blocks = ROUTED
    return model


def inputs(config):
    latents = torch.randn(3, config.in_channels, 16, 16, generator=torch.Generator().manual_seed(5))
    return latents, torch.tensor([0, 500, 999]), conditions(config)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_kept_tokens_take_all_blocks_and_the_others_skip_those_in_the_middle(
    combination, monkeypatch
) -> None:
    model = model_of(combination)
    latents, timesteps, given = inputs(model.config)
    plain = TransformerBlock.forward

    def routed_by_hand(block, x, *conditions, **options):
        """Picture by picture, with lists of tokens."""
        if list(model.transformer_blocks).index(block) not in ROUTED:
            return plain(block, x, *conditions, **options)
        whole = x.clone()
        for picture, kept in enumerate(KEPT.tolist()):
            own = [c[picture : picture + 1] for c in conditions]
            whole[picture, kept] = plain(block, x[picture : picture + 1, kept], *own, **options)[0]
        return whole

    with torch.no_grad():
        found = model(latents, timesteps, kept_tokens=KEPT, **given)
        monkeypatch.setattr(TransformerBlock, "forward", routed_by_hand)
        expected = model(latents, timesteps, **given)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_without_a_draw_a_model_that_could_route_computes_the_same_bits(combination) -> None:
    model = model_of(combination)
    latents, timesteps, given = inputs(model.config)
    routed = model(latents, timesteps, **given)
    everything = model(latents, timesteps, kept_tokens=torch.arange(TOKENS).expand(3, -1), **given)
    model.routed_blocks = range(0)
    assert torch.equal(model(latents, timesteps, **given), routed)
    assert torch.equal(everything, routed)
    half = torch.arange(TOKENS // 2).expand(3, -1)
    model.routed_blocks = ROUTED
    assert not torch.equal(model(latents, timesteps, kept_tokens=half, **given), routed)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_checkpointing_changes_no_bit_of_a_routed_gradient(combination, autocast) -> None:
    model = model_of(combination)
    latents, timesteps, given = inputs(model.config)
    gradients = []
    for mode in ("none", "selective", "full"):
        model.gradient_checkpointing = mode
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(latents, timesteps, kept_tokens=KEPT, **given)
        output.float().square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert all(torch.equal(other[name], gradient) for other in gradients[1:]), name


def make_step(**changes) -> TrainStep:
    options = {
        "features": "x",
        "model": ModelOptions(num_layers=LAYERS, num_attention_heads=2, attention_head_dim=8, sample_size=8),
        "max_train_steps": 20,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 2,
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "checkpointing_steps": 3,
        "token_routing": TokenRouting(start_block=1),
    }
    return TrainStep(**(options | changes))


def test_draws_are_of_seed_step_and_place_alone() -> None:
    step = make_step()
    whole = draw_kept_tokens(step, 3, range(8), 100)
    assert whole.shape == (8, 50)
    assert torch.equal(whole[4:], draw_kept_tokens(step, 3, range(4, 8), 100))
    assert (whole.diff(dim=1) > 0).all()
    assert whole.min() >= 0
    assert whole.max() < 100
    assert len({tuple(row) for row in whole.tolist()}) == 8
    assert not torch.equal(whole, draw_kept_tokens(step, 4, range(8), 100))
    assert not torch.equal(whole, draw_kept_tokens(make_step(seed=1), 3, range(8), 100))
    many = torch.cat([draw_kept_tokens(step, number, range(64), 100) for number in range(18)])
    share = torch.bincount(many.flatten(), minlength=100) / len(many)
    # Every token is kept half of the time, within five standard deviations.
    assert ((share - 0.5).abs() < 5 * 0.5 / len(many) ** 0.5).all()


def test_the_last_steps_take_all_tokens_through_all_blocks(tmp_path) -> None:
    store = FeatureStore(write_tiny_store(tmp_path))
    order = BatchOrder(store.buckets, 4, seed=0)

    def counts(step):
        found = []
        for number in range(20):
            batches = micro_batches(
                step,
                store,
                order,
                range(4),
                number,
                unconditional=Unconditional(store.empty_caption(), keeps_mask=False),
                null_class=0,
                patch_size=2,
            )
            kept = {b.kept_tokens if b.kept_tokens is None else tuple(b.kept_tokens.shape) for b in batches}
            height, width = order[number][0]
            found.append((height * width // 16, kept))
        return found

    # Buckets of 16 and 12 tokens; three quarters of each skip.
    routing = TokenRouting(start_block=1, selection_ratio=0.75, off_for_last=0.25)
    routed = counts(make_step(token_routing=routing))
    assert {tokens for tokens, _ in routed} == {16, 12}
    assert all(kept == {(2, tokens // 4)} for tokens, kept in routed[:15])
    assert all(kept == {None} for _, kept in routed[15:])
    assert all(kept == {None} for _, kept in counts(make_step(token_routing=None)))


VARIANTS = [
    {},
    {"use_additional_conditions": True},
    {"modulation": "adaln"},
    {"conditioning": "class"},
    {"conditioning": "class", "modulation": "adaln_single"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_routed_flops_equal_torchs_count_to_the_digit(options) -> None:
    shape = {"num_layers": LAYERS, "num_attention_heads": 4, "attention_head_dim": 12}
    model = ModelOptions.model_validate(shape | options)
    transformer = random_model(**shape, **options)
    transformer.routed_blocks = ROUTED
    latents, timesteps, given = inputs(transformer.config)
    given = {name: tensor[:1] for name, tensor in given.items()}
    length = given["text_embeds"].shape[1] if "text_embeds" in given else 0
    interface = Interface(latent_channels=4, caption_channels=20, text_tokens=length, classes=5)
    with FlopCounterMode(display=False) as forward:
        transformer(latents[:1], timesteps[:1], kept_tokens=KEPT[:1], **given)
    wanting = {k: v.requires_grad_() if v.dtype == torch.float32 else v for k, v in given.items()}
    with FlopCounterMode(display=False) as both:
        wanted = latents[:1].requires_grad_(), timesteps[:1].float().requires_grad_()
        transformer(*wanted, kept_tokens=KEPT[:1], **wanting).sum().backward()
    routed = (len(ROUTED), KEPT.shape[1])
    assert forward_flops(model, TOKENS, interface, routed) == forward.get_total_flops()
    assert training_flops(model, TOKENS, interface, routed) == both.get_total_flops()
    assert forward_flops(model, TOKENS, interface, routed) < forward_flops(model, TOKENS, interface)


def test_xl_with_the_default_routing_takes_the_flops_of_the_plan() -> None:
    options = {"model": ModelOptions(), "max_train_steps": 1000}
    plain = estimate_training(make_step(**options, token_routing=None))["training_flops"]
    always = estimate_training(make_step(**options, token_routing=TokenRouting(off_for_last=0.0)))
    mostly = estimate_training(make_step(**options, token_routing=TokenRouting()))
    assert always["training_flops"] == 4000 * training_flops(ModelOptions(), 256, Interface(), (24, 128))
    assert mostly["training_flops"] == pytest.approx(0.9 * always["training_flops"] + 0.1 * plain)
    assert plain / always["training_flops"] == pytest.approx(1.7, abs=0.05)
    assert any("token routing" in line for line in mostly["assumed"])


def test_the_pace_of_a_routed_batch_counts_what_it_skips(tmp_path) -> None:
    step, store = make_step(), FeatureStore(write_tiny_store(tmp_path))
    unconditional = Unconditional(store.empty_caption(), keeps_mask=False)
    order = BatchOrder(store.buckets, 4, seed=0)
    (batch, _) = micro_batches(
        step, store, order, range(4), 0, unconditional=unconditional, null_class=0, patch_size=2
    )
    config = random_model(in_channels=3, out_channels=6, num_layers=LAYERS, caption_channels=8).config
    tokens, length = batch.latents[0, 0].numel() // 4, batch.text.shape[1]
    model = ModelOptions(num_layers=LAYERS, num_attention_heads=4, attention_head_dim=12)
    expected = 2 * training_flops(model, tokens, Interface(3, 8, length), (3, tokens // 2))
    assert batch_flops(config, batch, routed_blocks=3) == expected


class Stop(Silent):
    """Ends a run at a step, as an exception out of nowhere would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left < 0:
            raise RuntimeError("pulled the plug")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("conditioning", ["text", "class"])
def test_a_routed_run_continues_bit_for_bit_and_is_another_than_a_plain_one(tmp_path, conditioning) -> None:
    store = write_tiny_store(tmp_path / "features")
    options = make_step().model.model_copy(update={"conditioning": conditioning})
    step = make_step(features=str(store), model=options)
    run_training(step, tmp_path / "whole", Silent())
    for after in (4, 13):
        with pytest.raises(RuntimeError, match="plug"):
            run_training(step, tmp_path / "broken", Stop(after))
    run_training(step, tmp_path / "broken", Silent())
    plain = step.model_copy(update={"token_routing": None})
    run_training(plain, tmp_path / "plain", Silent())
    whole, broken, without = (weights(tmp_path / name) for name in ("whole", "broken", "plain"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert whole.keys() == without.keys()
    assert any(not torch.equal(whole[name], without[name]) for name in whole)


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ({"start_block": 2, "end_block": 2}, "blocks 2 to 1 of a model with 5"),
        ({"start_block": 3}, "start_block must be below"),
        ({"end_block": 5}, "end_block at most 4"),
    ],
)
def test_blocks_that_a_model_has_not_are_one_clear_error(tmp_path, routing, message) -> None:
    step = make_step(
        features=str(write_tiny_store(tmp_path / "features")), token_routing=TokenRouting(**routing)
    )
    with pytest.raises(UserError, match=message):
        run_training(step, tmp_path / "run", Silent())
    assert not (tmp_path / "run/recipe.yaml").exists()
