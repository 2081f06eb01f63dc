"""The loss against closed forms for unit-Gaussian data, scipy, and diffusers' scheduler."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.integrate import quad
from scipy.stats import norm

from pixart_core.diffusion.guidance import guide
from pixart_core.diffusion.loss import diffusion_loss
from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.diffusion.weighting import Weighting

SCHEDULE = NoiseSchedule()
KINDS = ["epsilon", "v_prediction", "sample"]


def draw(t: int, count: int = 256, side: int = 16):
    generator = torch.Generator().manual_seed(t)
    latents, noise = (torch.randn(count, 4, side, side, generator=generator) for _ in range(2))
    timesteps = torch.full((count,), t)
    return latents, noise, SCHEDULE.add_noise(latents, noise, timesteps), timesteps


def loss_of(output, latents, noise, timesteps, kind="epsilon", **more):
    return diffusion_loss(
        SCHEDULE,
        output,
        latents=latents,
        noise=noise,
        timesteps=timesteps,
        prediction_type=kind,
        **more,
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [3, 321, 900])
def test_the_error_of_the_latents_equals_diffusers(kind, t) -> None:
    theirs = DDPMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type=kind, clip_sample=False
    )
    latents, noise, noisy, timesteps = draw(t, count=2)
    output = torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
    predicted = theirs.step(output.double(), t, noisy.double()).pred_original_sample
    error = output - SCHEDULE.target(kind, latents, noise, timesteps)
    found = SCHEDULE.latent_error(kind, error, timesteps)
    torch.testing.assert_close(found.double(), latents - predicted, rtol=1e-4, atol=1e-5)


# The published tables in float64, made here once more.
BETAS = np.linspace(1e-4, 0.02, 1000)
BAR = np.cumprod(1 - BETAS)
BEFORE = np.append(1.0, BAR[:-1])
POSTERIOR = BETAS * (1 - BEFORE) / (1 - BAR)
LOW = np.log(np.append(POSTERIOR[1], POSTERIOR[1:]))
MEAN_X0 = BETAS * np.sqrt(BEFORE) / (1 - BAR)
MEAN_XT = (1 - BEFORE) * np.sqrt(1 - BETAS) / (1 - BAR)


def tanh_cdf(x):
    """The released code's approximation of the normal distribution."""
    return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def expected_bound(t: int, share: float, cdf=norm.cdf) -> float:
    """Exact bound (bits) for unit-Gaussian latents: `share` of the noise is missed, the variance output 0."""
    spread = (math.log(BETAS[t]) - LOW[t]) / 2  # log variance above the posterior's
    missed = share * math.sqrt((1 - BAR[t]) / BAR[t])  # of x_0, by unit of noise
    if t:
        error = (MEAN_X0[t] * missed) ** 2 / math.exp(LOW[t])
        return 0.5 * (spread - 1 + math.exp(-spread) * (1 + error)) / math.log(2)
    deviation = math.exp(0.5 * (LOW[0] + spread))
    outside = norm.cdf(-0.999)  # of either side: bins that reach to infinity

    def bits(noise: float) -> float:
        upper, lower = ((missed * noise + edge) / deviation for edge in (1 / 255, -1 / 255))
        terms = ((1 - 2 * outside, cdf(upper) - cdf(lower)), (outside, cdf(upper)), (outside, cdf(-lower)))
        return -sum(weight * math.log2(max(p, 1e-12)) for weight, p in terms)

    return quad(lambda noise: bits(noise) * norm.pdf(noise), -9, 9, epsabs=1e-9, limit=400)[0]


def our_expectation(t: int, share: float) -> tuple[float, float]:
    """(mse, bound) of our loss, integrated over unit-Gaussian latents and noise.

    Gauss-Hermite in the noise; in the latents, quantiles of the two outermost bins and of what is between.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    outside = norm.cdf(-0.999)
    edges = ((0.0, outside), (outside, 1 - outside), (1 - outside, 1.0))
    middles = [low + (high - low) * (np.arange(8) + 0.5) / 8 for low, high in edges]
    latents = np.repeat(norm.ppf(np.concatenate(middles)), len(nodes))
    noise = np.tile(nodes, 24)
    parts = np.repeat([(high - low) / 8 for low, high in edges], 8)
    joint = torch.from_numpy(np.outer(parts, weights / weights.sum()).reshape(-1))
    latents, noise = (torch.from_numpy(v).float()[:, None, None, None] for v in (latents, noise))
    output = torch.cat([(1 - share) * noise, torch.zeros_like(noise)], dim=1)
    terms = loss_of(output, latents, noise, torch.full((len(noise),), t))
    return (joint @ terms.mse.double()).item(), (joint @ terms.vb.double()).item()


@pytest.mark.parametrize(("t", "bound"), [(0, 1.208), (1, 0.0493), (10, 0.0019), (500, 0.0)])
def test_perfect_noise_with_zero_variance_output_gives_the_exact_bound(t, bound) -> None:
    exact = expected_bound(t, share=0)
    assert exact == pytest.approx(bound, abs=5e-4 if t == 0 else 5e-5)
    mse, vb = our_expectation(t, share=0)
    assert mse == 0
    assert vb == pytest.approx(exact, abs=1e-3)
    assert vb == pytest.approx(expected_bound(t, 0, tanh_cdf), abs=1e-6)


@pytest.mark.parametrize(("t", "total"), [(0, 2.99), (1, 1.63), (500, 1.01)])
def test_zero_output_gives_the_exact_total(t, total) -> None:
    exact = 1 + expected_bound(t, share=1)
    assert exact == pytest.approx(total, abs=5e-3)
    mse, vb = our_expectation(t, share=1)
    assert mse == pytest.approx(1, abs=1e-6)
    assert mse + vb == pytest.approx(exact, abs=1e-3)
    assert mse + vb == pytest.approx(1 + expected_bound(t, 1, tanh_cdf), abs=2e-6)


def bound_in_float64(kind, latents, noise, output, timesteps, cdf) -> np.ndarray:
    """The released formula, step by step: x_0, both means, both variances."""
    x0, eps, out = (tensor.double().numpy() for tensor in (latents, noise, output))
    t = timesteps.numpy()

    def at(table):
        return table[t][:, None, None, None]

    signal, sigma = np.sqrt(at(BAR)), np.sqrt(1 - at(BAR))
    xt, prediction = signal * x0 + sigma * eps, out[:, :4]
    clean = {
        "epsilon": (xt - sigma * prediction) / signal,
        "v_prediction": signal * xt - sigma * prediction,
        "sample": prediction,
    }[kind]
    mean, true_mean = (at(MEAN_X0) * x + at(MEAN_XT) * xt for x in (clean, x0))
    low, high = at(LOW), np.log(at(BETAS))
    log_variance = (out[:, 4:] + 1) / 2 * high + (1 - out[:, 4:]) / 2 * low
    kl = 0.5 * (
        log_variance - low - 1 + np.exp(low - log_variance) + (true_mean - mean) ** 2 / np.exp(log_variance)
    )
    deviation = np.exp(0.5 * log_variance)
    upper, lower = (cdf((x0 - mean + edge) / deviation) for edge in (1 / 255, -1 / 255))
    probability = np.where(x0 < -0.999, upper, np.where(x0 > 0.999, 1 - lower, upper - lower))
    nll = -np.log(probability.clip(1e-12))
    bits = np.where(t[:, None, None, None] == 0, nll, kl) / math.log(2)
    return bits.reshape(len(bits), -1).mean(1)


def random_outputs(timesteps, kind, spread: float):
    """(latents, noise, an output that misses its target by about `spread`)."""
    generator = torch.Generator().manual_seed(int(1000 * spread))
    shape = (len(timesteps), 4, 6, 6)
    latents, noise, error, variance = (torch.randn(shape, generator=generator) for _ in range(4))
    target = SCHEDULE.target(kind, latents, noise, timesteps)
    return latents, noise, torch.cat([target + spread * error, 0.5 * variance], 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.02, 0.3, 1.0])
def test_the_bound_equals_an_independent_float64_formula_at_every_timestep(kind, spread) -> None:
    timesteps = torch.cat([torch.arange(1000), torch.zeros(50, dtype=torch.long)])
    latents, noise, output = random_outputs(timesteps, kind, spread)
    expected = bound_in_float64(kind, latents, noise, output, timesteps, tanh_cdf)
    vb = loss_of(output, latents, noise, timesteps, kind).vb.double().numpy()
    assert (np.abs(vb - expected) / np.maximum(expected, 1)).max() <= 1e-6


def test_the_bound_at_0_is_near_that_of_the_true_normal_distribution() -> None:
    timesteps = torch.zeros(50, dtype=torch.long)
    latents, noise, output = random_outputs(timesteps, "epsilon", 0.3)
    expected = bound_in_float64("epsilon", latents, noise, output, timesteps, norm.cdf)
    vb = loss_of(output, latents, noise, timesteps).vb.double().numpy()
    np.testing.assert_allclose(vb, expected, rtol=5e-3)


def test_bound_does_not_train_the_mean() -> None:
    latents, noise, _, timesteps = draw(100, count=1)
    output = torch.zeros(1, 8, 16, 16, requires_grad=True)
    loss_of(output, latents, noise, timesteps).vb.sum().backward()
    assert output.grad[:, :4].abs().max() == 0
    assert output.grad[:, 4:].abs().max() > 0


def test_without_learned_variance_there_is_no_bound() -> None:
    latents, noise, _, timesteps = draw(100, count=2)
    terms = loss_of(torch.zeros_like(noise), latents, noise, timesteps, "v_prediction")
    assert terms.vb is None
    assert torch.equal(terms.total, terms.mse)


def test_guidance_scale_one_is_the_conditional_branch() -> None:
    a, b = torch.randn(2, 1, 3, 2, 2)
    torch.testing.assert_close(guide(a, b, 1.0), b)
    torch.testing.assert_close(guide(a, b, 0.0), a)


WEIGHTS = {  # of the clean latents' error, in float64
    "min_snr": lambda snr, gamma: np.minimum(snr, gamma),
    "truncated_snr": lambda snr, gamma: np.clip(snr, 1.0, gamma),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_snr_weights_equal_an_independent_float64_formula_at_every_timestep(weighting, gamma, kind) -> None:
    timesteps = torch.arange(1000)
    latents, noise, output = random_outputs(timesteps, kind, 0.3)
    snr = BAR / (1 - BAR)
    # Hang et al. (2023): w = min(SNR, g) for x_0, / SNR for epsilon, / (SNR + 1) for v.
    own = {"sample": np.ones(1000), "epsilon": snr, "v_prediction": snr + 1}[kind]
    x0, eps, signal, sigma = latents.double(), noise.double(), np.sqrt(BAR), np.sqrt(1 - BAR)
    signal, sigma = (torch.from_numpy(v)[:, None, None, None] for v in (signal, sigma))
    target = {"sample": x0, "epsilon": eps, "v_prediction": signal * eps - sigma * x0}[kind]
    error = (output[:, :4].double() - target).square().flatten(1).mean(1).numpy()
    expected = error * WEIGHTS[weighting](snr, gamma) / own
    terms = loss_of(output, latents, noise, timesteps, kind, weighting=Weighting(weighting, gamma))
    np.testing.assert_allclose(terms.mse.double().numpy(), expected, rtol=2e-6)
    plain = loss_of(output, latents, noise, timesteps, kind)
    assert torch.equal(terms.vb, plain.vb)
    np.testing.assert_allclose(plain.mse.double().numpy(), error, rtol=2e-6)


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("t", [20, 200, 500, 900])
def test_an_snr_weight_is_the_same_for_every_kind_of_prediction(t, weighting) -> None:
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
        terms = loss_of(output, latents, noise, timesteps, kind, weighting=Weighting(weighting))
        weight = WEIGHTS[weighting](snr, 5.0)
        assert terms.mse.item() == pytest.approx(0.01 * weight, rel=1e-3), kind
