"""The training loss: squared error of the prediction plus the variational term of the learned variance."""

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixart_core.diffusion.schedule import NoiseSchedule, at


@dataclasses.dataclass(frozen=True)
class LossTerms:
    """Per-sample terms; `vb` is None when the variance is not learned."""

    mse: Float[Tensor, " b"]
    vb: Float[Tensor, " b"] | None

    @property
    def total(self) -> Float[Tensor, " b"]:
        """mse + vb, the L_hybrid of the released code (weight 1)."""
        return self.mse if self.vb is None else self.mse + self.vb


def diffusion_loss(
    schedule: NoiseSchedule,
    output: Float[Tensor, "b out h w"],
    *,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    noisy: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
    prediction_type: str,
    weighting: str = "uniform",
) -> LossTerms:
    """Loss of one prediction, in float32.

    `output` has c channels, or 2c when the second half interpolates the log variance between the
    posterior's (-1) and beta's (+1). The mean is detached inside vb, so that vb trains the variance only
    (Nichol & Dhariwal, 2021, section 3.1).
    """
    output = output.float()
    channels = latents.shape[1]
    prediction, variance = output[:, :channels], output[:, channels:]
    target = schedule.target(prediction_type, latents, noise, timesteps)
    mse = (prediction - target).square().flatten(1).mean(1)
    if weighting == "truncated_snr":
        mse = mse * truncated_snr_weight(schedule, prediction_type, timesteps)
    if variance.shape[1] == 0:
        return LossTerms(mse, None)
    predicted = schedule.predict_latents(prediction_type, prediction.detach(), noisy, timesteps)
    return LossTerms(mse, variational_bound(schedule, predicted, variance, latents, noisy, timesteps))


def truncated_snr_weight(
    schedule: NoiseSchedule, prediction_type: str, timesteps: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Weight that makes every kind of prediction count the error of x_0 by max(SNR, 1), at most by 5.

    Salimans & Ho (2022), section 4; the bound is that of min-SNR (Hang et al., 2023).
    """
    cumulative = schedule.alphas_cumprod[timesteps]
    snr = cumulative / (1 - cumulative)
    # error of epsilon = SNR x error of x_0; error of v = (SNR + 1) x error of x_0
    scale = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction_type]
    return snr.clamp(1.0, 5.0) / scale


def variational_bound(
    schedule: NoiseSchedule,
    predicted_latents: Float[Tensor, "b c h w"],
    variance: Float[Tensor, "b c h w"],
    latents: Float[Tensor, "b c h w"],
    noisy: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits per dimension; at t = 0 -log p(x_0 | x_1)."""

    def posterior_mean(clean: Tensor) -> Tensor:
        return (
            at(schedule.posterior_mean_x0, timesteps) * clean
            + at(schedule.posterior_mean_xt, timesteps) * noisy
        )

    low, high = at(schedule.posterior_log_variance, timesteps), at(schedule.log_betas, timesteps)
    share = (variance + 1) / 2
    log_variance = share * high + (1 - share) * low

    mean, true_mean = posterior_mean(predicted_latents), posterior_mean(latents)
    kl = 0.5 * (
        log_variance
        - low
        - 1
        + (low - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
    )
    nll = -discretized_log_likelihood(latents, mean, 0.5 * log_variance)
    bits = torch.where((timesteps == 0)[:, None, None, None], nll, kl) / math.log(2.0)
    return bits.flatten(1).mean(1)


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-likelihood of `x` under a Gaussian binned to 255 steps of [-1, 1].

    Made for 8-bit pixels; the released code applies it to latents too, and parity keeps it.
    """
    inverse_std = (-log_std).exp()
    upper = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    lower = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    # The outermost bins reach to infinity.
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    # The tanh approximation of the reference code, not erf.
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
