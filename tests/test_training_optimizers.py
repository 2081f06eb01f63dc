"""Laws of CAME and 8-bit AdamW: the papers' formulas, and what a rounded moment must still do."""

import numpy as np
import pytest
import torch

from pixart_core.training import adamw8bit
from pixart_core.training.adamw8bit import AdamW8bit
from pixart_core.training.came import Came
from pixart_core.training.quantised import (
    dequantise,
    in_blocks,
    quantise_positive,
    quantise_signed,
    table,
)

CPU = torch.device("cpu")


def random_gradients(shapes, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)]


def walk(optimizer, parameters, gradients) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


def came_in_float64(theta, gradients, *, lr, beta1, beta2, beta3, eps1, eps2, d, decay):
    """Algorithm 2 of the paper, with its sums over rows and columns, on one matrix or vector."""
    theta, m = theta.copy(), np.zeros_like(theta)
    vector = theta.ndim == 1
    r, c, rr, cc = (np.zeros(n) for n in (len(theta), theta.shape[-1]) * 2)
    for g in gradients:
        square = g**2 + eps1
        if vector:
            r = beta2 * r + (1 - beta2) * square
            v = r
        else:
            r = beta2 * r + (1 - beta2) * square @ np.ones(theta.shape[1])
            c = beta2 * c + (1 - beta2) * np.ones(theta.shape[0]) @ square
            v = np.outer(r, c) / r.sum()
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / d)
        m = beta1 * m + (1 - beta1) * u
        step = m
        if not vector:
            instability = (u - m) ** 2 + eps2
            rr = beta3 * rr + (1 - beta3) * instability @ np.ones(theta.shape[1])
            cc = beta3 * cc + (1 - beta3) * np.ones(theta.shape[0]) @ instability
            step = m / np.sqrt(np.outer(rr, cc) / rr.sum())
        theta = theta - lr * decay * theta - lr * step
    return theta


@pytest.mark.parametrize("shape", [(6, 4), (5,), (4, 3, 2, 2)])
def test_came_is_the_algorithm_of_the_paper(shape) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    parameter = torch.nn.Parameter(start.clone())
    gradients = random_gradients([shape], steps=12)
    optimizer = Came([parameter], lr=1e-2, weight_decay=0.1)
    walk(optimizer, [parameter], gradients)
    flat = (len(start), -1) if len(shape) > 1 else (-1,)
    expected = came_in_float64(
        start.double().numpy().reshape(flat),
        [g[0].double().numpy().reshape(flat) for g in gradients],
        lr=1e-2,
        beta1=0.9,
        beta2=0.999,
        beta3=0.9999,
        eps1=1e-30,
        eps2=1e-16,
        d=1.0,
        decay=0.1,
    )
    np.testing.assert_allclose(parameter.detach().numpy().reshape(flat), expected, rtol=2e-5, atol=2e-6)


def test_came_leaves_what_has_no_gradient() -> None:
    still, zero = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3, 2))
    zero.grad = torch.zeros(3, 2)
    Came([still, zero], lr=1.0).step()
    assert torch.equal(still, torch.ones(3, 2))
    assert torch.equal(zero, torch.ones(3, 2))


@pytest.mark.parametrize("kind", ["came", "adamw8bit"])
def test_parameters_are_updated_alone_as_together(kind, monkeypatch) -> None:
    shapes = [(40, 30), (7,), (40, 30), (300,), (7,), (40, 30), (4, 3, 2, 2)]
    gradients = random_gradients(shapes, steps=4)

    def ends(at_once: int) -> list[torch.Tensor]:
        monkeypatch.setattr(adamw8bit, "_TOGETHER", {"cpu": at_once})
        parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        options = {"lr": 1e-2, "weight_decay": 0.1}
        optimizer = Came(parameters, **options)
        if kind == "adamw8bit":
            optimizer = AdamW8bit(parameters, betas=(0.9, 0.99), eps=1e-8, **options)
        # One of them has no gradient at first, and is a step behind from then on.
        late = parameters[2]
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = None if parameter is late and step is gradients[0] else gradient.clone()
            optimizer.step()
        return parameters

    for alone, together in zip(ends(1), ends(10**6), strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-7)


def test_the_table_is_the_dynamic_data_type() -> None:
    signed, positive = table(True, CPU), table(False, CPU)
    assert len(signed) == len(positive) == len(signed.unique()) == len(positive.unique()) == 256
    assert torch.equal(signed[:-1], -signed[:-1].flip(0))
    # Values of bitsandbytes 0.50's create_dynamic_map.
    torch.testing.assert_close(signed[:3], torch.tensor([-0.99296874, -0.97890627, -0.96484375]))
    torch.testing.assert_close(positive[:4], torch.tensor([0.0, 3.25e-7, 7.75e-7, 2.125e-6]))
    torch.testing.assert_close(positive[-3:], torch.tensor([0.98945314, 0.99648440, 1.0]))


def many_sizes() -> torch.Tensor:
    """(64, 256) numbers of either sign from 1e-9 to 1, the largest in each row being 1."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** (-9 * torch.rand(64, 256, generator=generator))
    sizes[:, 0] = 1.0
    return sizes * (2 * torch.randint(2, sizes.shape, generator=generator) - 1)


def test_rounding_takes_the_nearest_value_of_each_block() -> None:
    for values in (many_sizes(), in_blocks(torch.randn(3, 300) ** 3), torch.zeros(2, 256)):
        scale = values.abs().amax(1, keepdim=True)
        entries = table(True, CPU) * scale[..., None]
        nearest = (values[..., None] - entries).abs().amin(-1)
        rounded = dequantise(quantise_signed(values), signed=True)
        torch.testing.assert_close((values - rounded).abs(), nearest, rtol=1e-5, atol=1e-9)


def test_rounding_in_turns_takes_one_of_the_two_values_around() -> None:
    values, entries = many_sizes().abs(), table(False, CPU)
    above = torch.searchsorted(entries, values).clamp(min=1)
    seen = torch.stack([dequantise(quantise_positive(values, t), signed=False) for t in range(50)])
    either = (seen == entries[above]) | (seen == entries[(above - 1).clamp(min=1)])
    assert either.all()
    assert (seen.amin(0) < seen.amax(0)).float().mean() > 0.5


def test_rounding_in_turns_is_right_on_average_and_never_zero() -> None:
    values = in_blocks(torch.rand(512, generator=torch.Generator().manual_seed(0)) ** 8)
    rounded = torch.stack([dequantise(quantise_positive(values, t), signed=False) for t in range(1000)])
    gaps = table(False, CPU).diff()
    scale = values.amax(1, keepdim=True)
    places = torch.searchsorted(table(False, CPU), values / scale, right=True).clamp(1, 255) - 1
    # Mean of a thousand turns of the golden ratio: right to a hundredth of the gap (but for the last value).
    wrong = (rounded.mean(0) - values).abs()
    bound = 0.01 * gaps[places] * scale + torch.where(places == 0, 3.25e-7 * scale, 0.0)
    assert (wrong <= bound + 1e-9).all()
    assert (rounded > 0).all()


def test_a_rounded_second_moment_follows_when_the_gradients_change() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = stuck = followed = torch.zeros(16, 256)
    sizes = 10.0 ** (-2 * torch.rand(2, 16, 256, generator=generator))
    middles = (table(False, CPU)[1:] + table(False, CPU)[:-1]) / 2
    for step in range(1, 4001):
        square = (sizes[step // 2001] * torch.randn(16, 256, generator=generator)).square()
        exact = 0.999 * exact + 0.001 * square
        followed = dequantise(quantise_positive(0.999 * followed + 0.001 * square, step), signed=False)
        stuck = 0.999 * stuck + 0.001 * square
        scale = stuck.amax(1, keepdim=True)
        stuck = table(False, CPU)[torch.bucketize(stuck / scale, middles)] * scale
    off = [(moment / exact).sqrt().log().abs().mean() for moment in (followed, stuck)]
    assert off[0] < 0.1
    assert off[1] > 4 * off[0]  # what rounding to the nearest would do


def test_the_first_update_in_8_bits_is_adamws() -> None:
    start, gradients = torch.ones(100, 70), random_gradients([(100, 70)], steps=1)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    walk(AdamW8bit([ours], **options), [ours], gradients)
    walk(torch.optim.AdamW([theirs], **options), [theirs], gradients)
    torch.testing.assert_close(ours, theirs)
