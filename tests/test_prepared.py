"""Laws of the fast path: diffusers' model to 1e-5 for all captions, sizes, back ends; no weight changes."""

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import diffusers_twin, random_model, run_diffusers

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.sampling import kernels, prepared_text
from pixart_core.sampling.denoise import denoise
from pixart_core.sampling.kernels import attention, linear
from pixart_core.sampling.model import SamplingModel, pad_tokens
from pixart_core.sampling.plain import PlainTransformer
from pixart_core.sampling.prepared import PreparedTransformer, can_prepare
from pixart_core.sampling.prepared_text import Cached, Constant, Folded, Projected

CPU = torch.device("cpu")
FACTS = ModelFacts(vae="", text_encoder="")
TINY_VAE = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
TIMESTEPS = torch.tensor([999, 500, 3])


def captions(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 20, generator=generator) for length in lengths]


def latents(count: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(5))


def by_diffusers(model, x, step, texts, size):
    """diffusers' prediction, its captions padded as its pipeline pads them."""
    text, mask = pad_tokens([*texts, torch.zeros(120, 20)])
    given = {"text_embeds": text[:-1], "text_mask": mask[:-1]}
    if size:
        given["resolution"] = torch.tensor([size], dtype=torch.float32).expand(len(x), 2)
        given["aspect_ratio"] = torch.full((len(x), 1), size[0] / size[1])
    with torch.no_grad():
        return run_diffusers(diffusers_twin(model), x, TIMESTEPS[step].expand(len(x)), given)


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 7, 16, 120]), min_size=1, max_size=3),
    negative=st.sampled_from([None, 1, 5, 60]),
    shape=st.sampled_from([(8, 8), (12, 4), (2, 16)]),
    step=st.integers(0, 2),
    sizes=st.booleans(),
)
def test_predictions_equal_those_of_diffusers_model(lengths, negative, shape, step, sizes) -> None:
    model = random_model(use_additional_conditions=sizes, attention_head_dim=12)
    positive = captions(*lengths)
    away = captions(negative, seed=1) * len(positive) if negative else []
    size = (8 * shape[0], 8 * shape[1]) if sizes else None
    x = latents(len(away + positive), *shape)
    with torch.no_grad():
        prepared = PreparedTransformer(model, TIMESTEPS, away, positive, size)
        ours = prepared(x, step, guided=bool(away))
        alone = prepared(x[-len(positive) :], step, guided=False)
    theirs = by_diffusers(model, x, step, away + positive, size)
    assert worst(ours, theirs) < 1e-5
    assert worst(alone, theirs[-len(positive) :]) < 1e-5


@pytest.mark.parametrize("modulation", ["adaln_single", "adaln"])
@pytest.mark.parametrize("steps", [1, 3])
def test_both_modulations_equal_the_model_itself(modulation, steps) -> None:
    model = random_model(modulation=modulation)
    given = (model, TIMESTEPS[:steps], captions(1) * 2, captions(9, 4))
    with torch.no_grad():
        prepared, plain = PreparedTransformer(*given), PlainTransformer(*given)
        for step in [*range(steps), 0]:
            for guided, count in ((True, 4), (False, 2)):
                x = latents(count)
                assert worst(prepared(x, step, guided=guided), plain(x, step, guided=guided)) < 1e-5


def test_captions_are_prepared_by_their_length() -> None:
    model = random_model()  # width 48, 4 heads
    one, short, long = captions(1, 9, 10)
    with torch.no_grad():
        kinds = prepared_text.prepare_text(model, [one, one, short, short.clone(), long, one])
    assert [(type(text), text.count) for text in kinds] == [
        (Constant, 2),
        (Folded, 2),
        (Cached, 1),
        (Constant, 1),
    ]


@pytest.mark.parametrize("room", [0, 2**31])
@pytest.mark.parametrize("lengths", [(3, 60, 9), (5, 5)])
def test_captions_padded_to_one_length_as_on_a_gpu_give_the_same(monkeypatch, room, lengths) -> None:
    model, texts = random_model(), captions(*lengths)
    monkeypatch.setattr(prepared_text, "_CACHED_BYTES", room)
    x = torch.randn(len(texts), 16, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (together,) = prepared_text.prepare_text(model, texts, padded=True)
        for block in (0, 2):
            layers = model.transformer_blocks[block].attn2
            each = [
                x[[n]] + layers(x[[n]], model.caption_projection(text)[None]) for n, text in enumerate(texts)
            ]
            if lengths == (5, 5):
                each = [x + layers(x, model.caption_projection(texts[0]).expand(2, -1, -1))]
                (together,) = prepared_text.prepare_text(model, texts[:1] * 2, padded=True)
            assert worst(together.add(x, block), torch.cat(each)) < 1e-5
    assert isinstance(together, Cached if room else Projected)


def test_what_is_kept_has_limits_in_bytes(monkeypatch) -> None:
    model, texts = random_model(), captions(5, 6, 5, 6)
    five, six = 2 * 3 * 5 * 4 * 48 * 4, 2 * 3 * 6 * 48 * 4
    monkeypatch.setattr(prepared_text, "_FOLDED_BYTES", five + 1)
    monkeypatch.setattr(prepared_text, "_CACHED_BYTES", six + five * 48 // 192)
    with torch.no_grad():
        kinds = prepared_text.prepare_text(model, texts)
    folded, cached, _, projected = kinds
    assert [type(text) for text in kinds] == [Folded, Cached, Cached, Projected]
    assert sum(block.keys.nbytes + block.values.nbytes for block in folded.blocks) == five
    assert sum(tensor.nbytes for tensor in cached.keys + cached.values) == six
    x = torch.randn(1, 16, 48, generator=torch.Generator().manual_seed(1))
    layers = model.transformer_blocks[1].attn2
    with torch.no_grad():
        expected = x + layers(x, model.caption_projection(texts[3])[None])
        assert worst(projected.add(x, 1), expected) < 1e-5


def test_a_large_picture_takes_attention_head_by_head_and_the_result_is_the_same(monkeypatch) -> None:
    asked = []
    by_head = kernels._by_head
    monkeypatch.setattr(kernels, "_by_head", lambda *given: asked.append(len(given)) or by_head(*given))
    q, k, v = (torch.randn(2, 600, 24, generator=torch.Generator().manual_seed(n)) for n in range(3))
    heads = [x.double().unflatten(-1, (2, 12)).transpose(1, 2) for x in (q, k, v)]
    weights = (heads[0] @ heads[1].mT / 12**0.5).softmax(-1)
    expected = (weights @ heads[2]).transpose(1, 2).flatten(2)
    assert worst(attention(q, k, v, num_heads=2), expected) < 5e-6
    assert len(asked) == 1
    assert worst(attention(q[:, :9], k, v, num_heads=2), expected[:, :9]) < 5e-6
    assert len(asked) == 1


def test_bf16_asks_for_onednn_only_where_the_processor_can(monkeypatch) -> None:
    x, w = torch.randn(3, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert torch.equal(linear(x, w, None), torch.nn.functional.linear(x, w))
    assert not kernels._has_onednn(x, w)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_linear_layers_equal_the_formula_with_and_without_onednn(monkeypatch, enabled, dtype, bound) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=generator).to(dtype) for s in ((2, 5, 64), (32, 64), (32,)))
    exact = x.double() @ w.double().T + b.double()
    gelu = exact * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (exact + 0.044715 * exact**3)))
    if not enabled:
        monkeypatch.setattr(kernels, "_has_onednn", lambda *_: False)
    assert worst(linear(x, w, b), exact) < bound
    assert worst(linear(x, w, b, "gelu"), gelu) < bound
    assert worst(linear(x, w, None), exact - b.double()) < bound


def test_without_onednn_predictions_are_the_same(monkeypatch) -> None:
    model = random_model()
    with torch.no_grad():
        prepared = PreparedTransformer(model, TIMESTEPS, captions(1), captions(6))
        fast = prepared(latents(2), 1, guided=True)
        monkeypatch.setattr(kernels, "_has_onednn", lambda *_: False)
        plain = prepared(latents(2), 1, guided=True)
    assert worst(plain, fast) < 1e-5


def test_in_bf16_the_error_is_that_of_the_plain_model() -> None:
    model = random_model(num_layers=6)
    texts = captions(1), captions(8)
    with torch.no_grad():
        exact = PlainTransformer(model, TIMESTEPS, *texts)(latents(2), 1, guided=True)
        model.bfloat16()
        x = latents(2).bfloat16()
        plain = worst(PlainTransformer(model, TIMESTEPS, *texts)(x, 1, guided=True), exact)
        fast = worst(PreparedTransformer(model, TIMESTEPS, *texts)(x, 1, guided=True), exact)
    assert 1e-4 < fast < 1.5 * plain


@pytest.mark.parametrize("length", [1, 9, 60])
def test_under_autocast_it_runs_in_bf16_as_the_plain_model_does(length) -> None:
    given = random_model(), TIMESTEPS, captions(1), captions(length)
    plain = PlainTransformer(*given)
    with torch.no_grad():
        exact = plain(latents(2), 1, guided=True)
        with torch.autocast("cpu", torch.bfloat16):
            output = PreparedTransformer(*given)(latents(2), 1, guided=True)
            by_plain = plain(latents(2), 1, guided=True)
    assert output.dtype == by_plain.dtype == torch.bfloat16
    assert 1e-4 < worst(output, exact) < 1.5 * worst(by_plain, exact)


def test_no_weight_is_changed() -> None:
    model = random_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        PreparedTransformer(model, TIMESTEPS, captions(1), captions(6))(latents(2), 0, guided=True)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Shard(torch.Tensor):
    """In the place of FSDP2's."""


class Wrapped(torch.nn.Linear):
    """In the place of an adapter's layer."""


def share_out(model) -> None:
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight.data.as_subclass(Shard))


def wrap(model) -> None:
    model.transformer_blocks[1].attn2.to_q = Wrapped(48, 48)


def hook(model) -> None:
    model.transformer_blocks[2].ff.net[2].register_forward_pre_hook(lambda *_: None)


def offload(model) -> None:
    """As accelerate does."""
    layer = model.transformer_blocks[0]
    layer.forward = layer.forward


@pytest.mark.parametrize("change", [share_out, wrap, hook, offload])
def test_a_model_whose_layers_are_not_their_weights_is_left_to_its_own_forward_pass(change) -> None:
    model = random_model()
    assert can_prepare(model)
    change(model)
    assert not can_prepare(model)
    assert not can_prepare(random_model(conditioning="class"))


def denoised(model, **options) -> torch.Tensor:
    sampling = SamplingModel("tests", model, vae=TINY_VAE, facts=FACTS, learned_uncond=None, device=CPU)
    solver = {"scheduler": "dpm-solver", "num_inference_steps": 4, "guidance_scale": 3.0}
    return denoise(sampling, latents(2), captions(4, 9), captions(1)[0], **solver, **options)


def test_sampling_takes_the_fast_path_unless_it_cannot(monkeypatch) -> None:
    built = []
    for kind in (PreparedTransformer, PlainTransformer):
        make = kind.__init__
        monkeypatch.setattr(
            kind, "__init__", lambda *given, make=make: built.append(type(given[0])) or make(*given)
        )
    model = random_model()
    fast, plain = denoised(model), denoised(model, fast=False)
    assert 0 < worst(fast, plain) < 1e-5
    hook(model)
    assert torch.equal(denoised(model), plain)
    assert built == [PreparedTransformer, PlainTransformer, PlainTransformer]
