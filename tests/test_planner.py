"""The planner of `--dry-run`: its counts against torch's, its sums against the paper's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pixart_cli import app
from pixart_core.artifacts.card import Card
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.recipe.estimate import estimate_recipe, estimate_training
from pixart_core.recipe.feature_estimate import estimate_features
from pixart_core.recipe.features import ExtractFeaturesStep
from pixart_core.recipe.load import load_recipe
from pixart_core.recipe.model_counts import (
    Interface,
    activation_bytes,
    forward_flops,
    model_width,
    parameters,
    training_flops,
)
from pixart_core.recipe.training import ModelOptions, TrainStep

SMALL = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 24, "sample_size": 16}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"patch_size": 4, "learned_variance": False},
    {"use_additional_conditions": True},
    {"modulation": "adaln"},
    {"conditioning": "class"},
    {"conditioning": "class", "modulation": "adaln_single"},
]


@pytest.fixture(autouse=True)
def nothing_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is in an empty folder: what a checkout happens to hold does not count."""
    monkeypatch.chdir(tmp_path)


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
    # Gradients of everything, as three times the forward pass counts them.
    wanting = {k: v.requires_grad_() if v.dtype == torch.float32 else v for k, v in given.items()}
    with FlopCounterMode(display=False) as both:
        transformer(**wanting).sum().backward()
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


def pixart(*args: str) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as ended:
        app.main(list(args))
    return int(ended.value.code or 0)


def stage(name: str) -> dict[str, Any]:
    """The estimate of a bundled stage, in an empty folder."""
    recipe = load_recipe(name)
    step = recipe.steps[name]
    assert isinstance(step, TrainStep)
    return estimate_training(step, name, recipe, Path("/nowhere"))


def test_cost_follows_hardware_and_nothing_else_does(capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*flags: str) -> dict[str, Any]:
        assert pixart("train", "--recipe", "stage2", "--dry-run", "--json", *flags) == 0
        return dict(json.loads(capsys.readouterr().out)["estimate"])

    base = plan("--gpu", "h200", "--mfu", "0.5", "--price", "3")
    assert base["training_flops"] == 3 * forward_flops(ModelOptions(), 256, Interface()) * 150_000 * 11_392
    assert base["gpu_days"] == pytest.approx(base["training_flops"] / (0.5 * 989.4e12 * 86_400), rel=1e-3)
    assert base["usd"] == pytest.approx(base["gpu_days"] * 24 * 3, rel=1e-3)
    assert base["days"] == pytest.approx(base["gpu_days"] / 64, rel=1e-3)
    slower = plan("--gpu", "H200", "--mfu", "0.25", "plan.price=3", "plan.kg_co2_per_kwh=0")
    assert slower["gpu_days"] == pytest.approx(2 * base["gpu_days"], rel=1e-3)
    assert (slower["kg_co2"], slower["training_flops"]) == (0, base["training_flops"])
    assert any("25.0%" in line for line in slower["assumed"])


def test_memory_is_weights_gradients_adam_and_average_plus_what_a_batch_keeps() -> None:
    known = stage("stage2")
    memory = known["memory_gigabytes"]
    # fp32 weights, gradients, two moments and average, and a bf16 copy: 22 bytes a parameter.
    assert memory["total"] - memory["activations"] == pytest.approx(22 * 610_856_096 / 1e9, abs=0.01)
    room = memory["of"] - (memory["total"] - memory["activations"])
    fitting = memory["largest_micro_batch"]
    each = memory["activations"] / 178
    assert fitting * each <= room < (fitting + 1) * each


def test_disk_is_that_of_the_feature_store() -> None:
    known = stage("stage3_512")
    store = estimate_features(ExtractFeaturesStep(data="hq", resolution=512), 14_000_000)
    expected = store["bytes_at_most"]["int8"] / 1e9
    assert known["features_gigabytes_at_most"] == pytest.approx(expected, rel=1e-4)


def test_a_chain_is_planned_before_anything_is_made(tmp_path: Path) -> None:
    estimates, total = estimate_recipe(load_recipe("quickstart"), tmp_path)
    assert estimates["stage1"]["tokens"] == estimates["stage2"]["tokens"] == 64
    assert estimates["stage3"]["tokens"] == 96  # 64x96 and 96x64 px at 1/2 in patches of 4
    # The re-parameterised stage 1: 6 layers of width 128, latents of 3 channels, captions of width 64.
    tiny = ModelOptions(
        num_layers=6, num_attention_heads=4, attention_head_dim=32, patch_size=4, learned_variance=False
    )
    assert estimates["stage2"]["parameters"] == parameters(tiny, latent_channels=3, caption_channels=64)
    trained = [estimates[name]["training_flops"] for name in ("stage1", "stage2", "stage3")]
    assert total["training_flops"] == sum(trained)


def test_features_that_are_there_tell_their_buckets_captions_and_count(tmp_path: Path) -> None:
    details = {
        "count": 40,
        "buckets": {"256x256": 10, "128x512": 30, "512x512": 40},
        "resolutions": [256, 512],
        "max_tokens": 50,
        "caption_channels": 64,
        "latent_channels": 4,
        "vae": {"downsampling": 8},
    }
    Card("features", {}, {}, details).write(tmp_path)
    step = TrainStep(
        features=str(tmp_path),
        resolution=256,
        model=ModelOptions(),
        max_train_steps=3,
        global_batch_size=8,
        micro_batch_size=8,
    )
    known = estimate_training(step)
    interface = Interface(caption_channels=64, text_tokens=50)
    assert (known["samples"], known["epochs"], known["tokens"]) == (40, 0.6, 256)
    assert known["training_flops"] == 24 * training_flops(ModelOptions(), 256, interface)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--gpu", "K80"], "plan.gpu"),
        (["--mfu", "40"], "plan.mfu"),
        (["--price", "-1"], "plan.price"),
        (["plan.gpuz=A100"], "gpuz"),
        (["plan.steps.stage1.images=5"], "no train step 'stage1'"),
    ],
)
def test_wrong_hardware_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert pixart("train", "--recipe", "stage2", "--dry-run", *flags) == 2
    assert told in capsys.readouterr().err
