"""Compiled blocks compute what blocks compute."""

import logging
import shutil

import pytest
import torch
from random_models import random_model
from safetensors.torch import load_file
from stores import write_tiny_store
from test_models_checkpointing import MODES, gradients

from pixart_core.errors import UserError
from pixart_core.models.compiling import check_compiler, compile_blocks
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.loop import run_training

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=2e-6 * largest)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_eager_blocks_at_any_size(mode, caplog) -> None:
    # "aot_eager" traces forward and backward as the real compiler does, and needs none.
    model, sides = random_model(), (16, 12, 20, 8)
    expected = {side: gradients(model, mode, side=side) for side in sides}
    names = list(model.state_dict())
    compile_blocks(model, backend="aot_eager")
    assert list(model.state_dict()) == names
    for side in sides:
        assert_alike(gradients(model, mode, side=side), expected[side])
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    # Once for the first size and once for all: neither a block nor a size compiles anew.
    assert counters["aot_autograd"]["ok"] == 2


@needs_compiler
def test_a_training_run_ends_with_the_same_weights_to_rounding(tmp_path) -> None:
    store = write_tiny_store(tmp_path / "features", {(16, 16): 8})  # one size: one compilation
    weights = {}
    for compiled in (False, True):
        step = TrainStep(
            features=str(store),
            model=ModelOptions(
                conditioning="class", num_layers=2, num_attention_heads=2, attention_head_dim=8, sample_size=8
            ),
            max_train_steps=3,
            global_batch_size=4,
            micro_batch_size=4,
            learning_rate=1e-3,
            lr_warmup_steps=0,
            ema_decay=0.0,
            optimizer={"kind": "adamw", "eps": 1e-3},  # Adam divides rounding by rounding where eps is tiny
            compile=compiled,
        )
        output = tmp_path / str(compiled)
        run_training(step, output, Silent())
        weights[compiled] = load_file(output / "transformer/diffusion_pytorch_model.safetensors")
    assert weights[True].keys() == weights[False].keys()
    for name, tensor in weights[False].items():
        torch.testing.assert_close(weights[True][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_a_missing_compiler_is_told_with_what_to_do() -> None:
    from torch._inductor import config

    nowhere = config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True})
    message = r"compile: true needs a C\+\+ compiler .* set compile: false"
    with nowhere, pytest.raises(UserError, match=message):
        check_compiler(torch.device("cpu"))
