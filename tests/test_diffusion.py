"""The loss against closed forms for unit-Gaussian data, scipy, and diffusers' scheduler."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import norm

from pixart_core.diffusion.guidance import guide
from pixart_core.diffusion.loss import diffusion_loss
from pixart_core.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
KINDS = ["epsilon", "v_prediction", "sample"]


def draw(t: int, count: int = 256, side: int = 16):
    generator = torch.Generator().manual_seed(t)
    latents, noise = (torch.randn(count, 4, side, side, generator=generator) for _ in range(2))
    timesteps = torch.full((count,), t)
    return latents, noise, SCHEDULE.add_noise(latents, noise, timesteps), timesteps


def loss_of(output, latents, noise, noisy, timesteps, kind="epsilon"):
    return diffusion_loss(
        SCHEDULE,
        output,
        latents=latents,
        noise=noise,
        noisy=noisy,
        timesteps=timesteps,
        prediction_type=kind,
    )


def test_schedule_has_the_published_values() -> None:
    assert SCHEDULE.alphas_cumprod[500].item() == pytest.approx(0.077797, abs=1e-6)
    assert SCHEDULE.alphas_cumprod[999].item() == pytest.approx(4.036e-5, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_targets_equal_diffusers(kind) -> None:
    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    latents, noise, noisy, timesteps = draw(321, count=2)
    torch.testing.assert_close(noisy, theirs.add_noise(latents, noise, timesteps))
    expected = {
        "epsilon": noise,
        "sample": latents,
        "v_prediction": theirs.get_velocity(latents, noise, timesteps),
    }
    target = SCHEDULE.target(kind, latents, noise, timesteps)
    torch.testing.assert_close(target, expected[kind])
    torch.testing.assert_close(
        SCHEDULE.predict_latents(kind, target, noisy, timesteps), latents, rtol=0, atol=2e-5
    )


@pytest.mark.parametrize(("t", "vb"), [(0, 1.207), (1, 0.0493), (10, 0.0019), (500, 0.0)])
def test_perfect_noise_with_zero_variance_output_gives_the_known_bound(t, vb) -> None:
    latents, noise, noisy, timesteps = draw(t)
    terms = loss_of(torch.cat([noise, torch.zeros_like(noise)], 1), latents, noise, noisy, timesteps)
    assert terms.mse.max() == 0
    assert terms.vb.mean().item() == pytest.approx(vb, abs=1e-3 if t else 3e-3)


@pytest.mark.parametrize(("t", "total"), [(0, 2.98), (1, 1.63), (500, 1.004)])
def test_zero_output_gives_the_known_total(t, total) -> None:
    latents, noise, noisy, timesteps = draw(t)
    terms = loss_of(torch.zeros(len(latents), 8, 16, 16), latents, noise, noisy, timesteps)
    assert terms.total.mean().item() == pytest.approx(total, abs=0.01)


@pytest.mark.parametrize("t", [0, 1, 37, 999])
def test_bound_equals_an_independent_float64_formula(t) -> None:
    latents, noise, noisy, timesteps = draw(t, count=1, side=4)
    output = 0.3 * torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(5))
    vb = loss_of(output, latents, noise, noisy, timesteps).vb.item()

    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    x0, xt, out = (tensor.double().numpy() for tensor in (latents, noisy, output))
    clean = (xt - math.sqrt(1 - bar[t]) * out[:, :4]) / math.sqrt(bar[t])
    a = betas[t] * math.sqrt(before[t]) / (1 - bar[t])
    b = (1 - before[t]) * math.sqrt(1 - betas[t]) / (1 - bar[t])
    s = max(t, 1)
    low = math.log(betas[s] * (1 - before[s]) / (1 - bar[s]))
    log_variance = low + (out[:, 4:] + 1) / 2 * (math.log(betas[t]) - low)
    if t:
        variance = np.exp(log_variance)
        difference = a * x0 - a * clean
        bits = 0.5 * (log_variance - low + (math.exp(low) + difference**2) / variance - 1)
        tolerance = 1e-6
    else:
        deviation = np.exp(0.5 * log_variance)
        mean = a * clean + b * xt
        upper, lower = (norm.cdf(x0 + edge, mean, deviation) for edge in (1 / 255, -1 / 255))
        probability = np.where(x0 < -0.999, upper, np.where(x0 > 0.999, 1 - lower, upper - lower))
        bits = -np.log(probability.clip(1e-12))
        tolerance = 5e-3  # the reference code approximates the normal cdf by a tanh
    assert vb == pytest.approx(bits.mean() / math.log(2), rel=tolerance, abs=tolerance)


def test_bound_does_not_train_the_mean() -> None:
    latents, noise, noisy, timesteps = draw(100, count=1)
    output = torch.zeros(1, 8, 16, 16, requires_grad=True)
    loss_of(output, latents, noise, noisy, timesteps).vb.sum().backward()
    assert output.grad[:, :4].abs().max() == 0
    assert output.grad[:, 4:].abs().max() > 0


def test_without_learned_variance_there_is_no_bound() -> None:
    latents, noise, noisy, timesteps = draw(100, count=2)
    terms = loss_of(torch.zeros_like(noise), latents, noise, noisy, timesteps, "v_prediction")
    assert terms.vb is None
    assert torch.equal(terms.total, terms.mse)


def test_guidance_scale_one_is_the_conditional_branch() -> None:
    a, b = torch.randn(2, 1, 3, 2, 2)
    torch.testing.assert_close(guide(a, b, 1.0), b)
    torch.testing.assert_close(guide(a, b, 0.0), a)


@pytest.mark.parametrize("t", [20, 200, 500, 900])
def test_the_truncated_snr_weight_is_the_same_for_every_kind_of_prediction(t) -> None:
    latents, noise, noisy, timesteps = draw(t, count=1)
    guess = latents + 0.1
    implied = (noisy - SCHEDULE.signal[t] * guess) / SCHEDULE.sigma[t]
    outputs = {
        "sample": guess,
        "epsilon": implied,
        "v_prediction": SCHEDULE.signal[t] * implied - SCHEDULE.sigma[t] * guess,
    }
    snr = float(SCHEDULE.alphas_cumprod[t] / (1 - SCHEDULE.alphas_cumprod[t]))
    for kind, output in outputs.items():
        terms = diffusion_loss(
            SCHEDULE,
            output,
            latents=latents,
            noise=noise,
            noisy=noisy,
            timesteps=timesteps,
            prediction_type=kind,
            weighting="truncated_snr",
        )
        assert terms.mse.item() == pytest.approx(0.01 * min(max(snr, 1.0), 5.0), rel=1e-3), kind
