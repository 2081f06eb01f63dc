"""Laws that hold for every config: parity with diffusers, layouts, names, parameter counts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import (
    DIFFUSERS_DIT,
    assert_close,
    conditions,
    diffusers_twin,
    gradients,
    randomise,
    run_diffusers,
)

from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import check_weights

few = settings(max_examples=15, deadline=None, derandomize=True)


@st.composite
def configs(draw, conditioning=("text", "class"), modulation=("adaln_single", "adaln"), like_diffusers=False):
    kind, way = draw(st.sampled_from(conditioning)), draw(st.sampled_from(modulation))
    micro = kind == "text" and draw(st.booleans())
    channels, patch = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 4]))
    fields = {
        "conditioning": kind,
        "modulation": way,
        "num_attention_heads": draw(st.integers(1, 4)),
        "attention_head_dim": draw(st.sampled_from([12, 24] if micro else [4, 8, 20])),
        "in_channels": channels,
        "out_channels": channels * draw(st.integers(1, 2)),
        "num_layers": draw(st.integers(1, 3)),
        "patch_size": patch,
        "sample_size": patch * draw(st.integers(1, 6)),
        "mlp_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
    }
    if kind == "text":
        fields |= {
            "caption_channels": draw(st.integers(1, 40)),
            "use_additional_conditions": micro,
            "interpolation_scale": draw(st.sampled_from([0.5, 1.0, 1.37, 2.0])),
        }
    else:
        fields |= {"num_embeds_ada_norm": draw(st.integers(1, 6)), "caption_channels": 4096}
    if (kind, way) == ("class", "adaln") and (like_diffusers or draw(st.booleans())):
        fields |= DIFFUSERS_DIT
    elif way == "adaln":
        fields["timestep_freq_shift"] = draw(st.integers(0, 1))
    return TransformerConfig(**fields)


def assert_parity(
    config: TransformerConfig, rows: int, columns: int, timesteps: list[int], seed: int
) -> None:
    ours = build_transformer(config).eval()
    randomise(ours, seed)
    theirs = diffusers_twin(ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    generator = torch.Generator().manual_seed(seed)
    size = (rows * config.patch_size, columns * config.patch_size)
    latents = torch.randn(len(timesteps), config.in_channels, *size, generator=generator)
    given_too = conditions(config, len(timesteps), seed)
    a = ours(latents, torch.tensor(timesteps), **given_too)
    b = run_diffusers(theirs, latents, torch.tensor(timesteps), given_too)
    assert_close(a, b)
    expected = gradients(theirs, b)
    for name, gradient in gradients(ours, a).items():
        assert_close(gradient, expected[name], name)


sides = st.integers(1, 7)
timestep_lists = st.lists(st.integers(0, 999), min_size=1, max_size=3)
seeds = st.integers(0, 2**16)


@few
@given(configs(["text"], ["adaln_single"]), sides, sides, timestep_lists, seeds)
def test_any_pixart_equals_diffusers_forward_and_backward(config, rows, columns, timesteps, seed) -> None:
    assert_parity(config, rows, columns, timesteps, seed)


@few
@given(configs(["class"], ["adaln"], like_diffusers=True), sides, timestep_lists, seeds)
def test_any_dit_equals_diffusers_forward_and_backward(config, side, timesteps, seed) -> None:
    assert_parity(config, side, side, timesteps, seed)  # diffusers' class knows squares only


@few
@given(configs())
def test_any_config_survives_its_layout_and_its_weights_fit_it(config) -> None:
    again = TransformerConfig.from_diffusers(config.to_diffusers())
    assert again == config
    check_weights(build_transformer(again), build_transformer(config).state_dict(), "the same config")


@few
@given(configs())
def test_the_number_of_parameters_is_that_of_the_paper_s_formula(config) -> None:
    d, depth, classes = config.width, config.num_layers, config.num_embeds_ada_norm + 1

    def linear(inner: int, out: int) -> int:
        return (inner + 1) * out

    embedder = linear(256, d) + linear(d, d)
    if config.conditioning == "class":
        embedder += classes * d
    elif config.use_additional_conditions:
        embedder += 2 * (linear(256, d // 3) + linear(d // 3, d // 3))
    attention, feed_forward = 4 * linear(d, d), linear(d, 4 * d) + linear(4 * d, d)
    block = attention + feed_forward
    outside = linear(config.in_channels * config.patch_size**2, d)
    outside += linear(d, config.out_channels * config.patch_size**2)
    if config.conditioning == "text":
        block += attention
        outside += linear(config.caption_channels, d) + linear(d, d)
    if config.modulation == "adaln":
        block += linear(d, 6 * d)
        outside += linear(d, 2 * d)
    else:
        block += 6 * d
        outside += linear(d, 6 * d) + 2 * d
    copies = depth if config.embedders == "per_block" else 1
    with torch.device("meta"):
        model = build_transformer(config)
    assert sum(p.numel() for p in model.parameters()) == outside + depth * block + copies * embedder
