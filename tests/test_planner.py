"""The planner of `--dry-run`: its counts against torch's, its sums against the paper's."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.recipe.model_counts import (
    Interface,
    activation_bytes,
    forward_flops,
    model_width,
    parameters,
    training_flops,
)
from pixart_core.recipe.training import ModelOptions

SMALL = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 24, "sample_size": 16}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"patch_size": 4, "learned_variance": False},
    {"use_additional_conditions": True},
    {"modulation": "adaln"},
    {"conditioning": "class"},
    {"conditioning": "class", "modulation": "adaln_single"},
]


def build(model: ModelOptions, interface: Interface, device: str) -> torch.nn.Module:
    """The transformer that training would make of these options."""
    channels = interface.latent_channels
    shape = model.model_dump(exclude={"size", "learned_variance", "modulation"})
    config = TransformerConfig(
        **shape,
        modulation=model.modulation,
        in_channels=channels,
        out_channels=2 * channels if model.learned_variance else channels,
        caption_channels=interface.caption_channels,
        num_embeds_ada_norm=interface.classes,
    )
    with torch.device(device):
        return build_transformer(config)


def inputs(model: ModelOptions, interface: Interface, side: int, device: str) -> dict[str, Any]:
    """One picture of latents (4, side, side) and its conditions."""
    given: dict[str, Any] = {
        "latents": torch.zeros(1, interface.latent_channels, side, side, device=device),
        "timesteps": torch.zeros(1, device=device),
    }
    if model.conditioning == "class":
        return given | {"labels": torch.zeros(1, dtype=torch.long, device=device)}
    size = (1, interface.text_tokens)
    given["text_embeds"] = torch.zeros(*size, interface.caption_channels, device=device)
    given["text_mask"] = torch.ones(*size, dtype=torch.bool, device=device)
    if model.use_additional_conditions:
        given["resolution"] = torch.zeros(1, 2, device=device)
        given["aspect_ratio"] = torch.zeros(1, 1, device=device)
    return given


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_flops_and_parameters_equal_torchs_count_to_the_digit(options: dict[str, Any]) -> None:
    model = ModelOptions.model_validate(SMALL | options)
    interface = Interface(latent_channels=3, caption_channels=40, text_tokens=7, classes=11)
    transformer = build(model, interface, "cpu")
    given = inputs(model, interface, 16, "cpu")
    tokens = (16 // model.patch_size) ** 2
    with FlopCounterMode(display=False) as forward:
        transformer(**given)
    with FlopCounterMode(display=False) as both:
        transformer(**given).sum().backward()
    assert forward_flops(model, tokens, interface) == forward.get_total_flops()
    assert training_flops(model, tokens, interface) == both.get_total_flops()
    counted = parameters(model, latent_channels=3, caption_channels=40, classes=11)
    assert counted == sum(p.numel() for p in transformer.parameters())


@pytest.mark.parametrize(
    "options", [{}, {"use_additional_conditions": True}, {"conditioning": "class"}], ids=str
)
def test_flops_of_xl_equal_torchs_count_to_the_digit(options: dict[str, Any]) -> None:
    model, interface = ModelOptions.model_validate(options), Interface()
    transformer = build(model, interface, "meta")
    for side in (32, 128):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            transformer(**inputs(model, interface, side, "meta"))
        assert forward_flops(model, (side // 2) ** 2, interface) == counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("conditioning", ["text", "class"])
def test_activations_of_fp32_are_what_autograd_keeps(conditioning: str, checkpointing: str) -> None:
    side, interface = 72, Interface(caption_channels=40, classes=11)

    def kept(layers: int) -> int:
        model = ModelOptions.model_validate(SMALL | {"num_layers": layers, "conditioning": conditioning})
        transformer: Any = build(model, interface, "cpu")
        transformer.gradient_checkpointing = checkpointing
        weights = {p.untyped_storage().data_ptr() for p in transformer.parameters()}
        seen: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            transformer(**inputs(model, interface, side, "cpu"))
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())

    model = ModelOptions.model_validate(SMALL | {"conditioning": conditioning})
    tokens = (side // 2) ** 2

    def estimated(layers: int) -> int:
        deep = model.model_copy(update={"num_layers": layers})
        return activation_bytes(deep, tokens, interface, precision="no", checkpointing=checkpointing)

    # Of two blocks: what is before and after them, and the block that is computed again, drops out.
    measured, expected = kept(4) - kept(2), estimated(4) - estimated(2)
    assert measured == pytest.approx(expected, rel=0.02)
    assert expected > 2 * 4 * tokens * model_width(model) - 1
