"""Laws of the averaged weights, wherever they lie."""

import threading

import numpy as np
import pytest
import torch

from pixart_core.training.ema import Ema


def walk(ema: Ema, model: torch.nn.Module, steps: int) -> list[np.ndarray]:
    """Moves the weights at random; returns those of every step in float64."""
    generator = torch.Generator().manual_seed(1)
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ema.update(model)
        seen.append(model.weight.detach().double().numpy().copy())
    return seen


def linear(dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 3).to(dtype)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_the_closed_form_in_float32(offload, dtype) -> None:
    model = linear(dtype)
    ema = Ema(model, 0.9, offload=offload)
    first = model.weight.detach().double().numpy().copy()
    seen = walk(ema, model, 20)
    expected = 0.9**20 * first + sum(0.1 * 0.9 ** (19 - k) * weights for k, weights in enumerate(seen))
    assert {w.dtype for w in ema.weights.values()} == {torch.float32}
    np.testing.assert_allclose(ema.weights["weight"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_offloading_changes_no_bit_and_no_weight() -> None:
    here, there = linear(), linear()
    a, b = Ema(here, 0.99), Ema(there, 0.99, offload=True)
    walk(a, here, 50)
    walk(b, there, 50)
    assert torch.equal(here.weight, there.weight)
    for name, average in a.weights.items():
        assert torch.equal(average, b.weights[name])
    assert b.weights["weight"].data_ptr() != there.weight.data_ptr()


def test_an_offloaded_average_is_read_only_when_its_update_is_done() -> None:
    model = linear()
    ema = Ema(model, 0.5, offload=True)
    before = ema.weights["weight"].clone()
    started = threading.Event()
    # The thread is kept from its work until the average is asked for.
    ema._offloaded.worker.submit(started.wait, 60)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(model)
    assert torch.equal(ema._weights["weight"], before)
    threading.Timer(0.05, started.set).start()
    torch.testing.assert_close(ema.weights["weight"], before + 0.5)


def test_a_failure_of_the_thread_reaches_the_run() -> None:
    model = linear()
    ema = Ema(model, 0.5, offload=True)
    ema.update(model)
    ema._offloaded.wait()
    ema._offloaded.arrived[0] = torch.zeros(2, 2)
    ema._offloaded.pending = ema._offloaded.worker.submit(ema._offloaded._average, None)
    with pytest.raises(RuntimeError, match="size"):
        _ = ema.weights


@pytest.mark.parametrize("offload", [False, True])
def test_loaded_averages_are_continued(offload) -> None:
    model = linear()
    whole, first = Ema(model, 0.9), Ema(model, 0.9)
    walk(whole, model, 3)
    first.load({name: tensor.clone() for name, tensor in whole.weights.items()})
    second = Ema(linear(), 0.9, offload=offload)
    second.load(first.weights)
    whole.update(model)
    second.update(model)
    assert torch.equal(whole.weights["weight"], second.weights["weight"])
