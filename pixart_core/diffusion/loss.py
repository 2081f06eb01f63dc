"""The training loss: squared error of the prediction plus the variational term of the learned variance."""

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixart_core.diffusion.schedule import NoiseSchedule, at
from pixart_core.diffusion.weighting import UNIFORM, Weighting, loss_weight


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
    timesteps: Int[Tensor, " b"],
    prediction_type: str,
    weighting: Weighting = UNIFORM,
) -> LossTerms:
    """Loss of one prediction, in float32.

    `output` has c channels, or 2c when the second half interpolates the log variance between the
    posterior's (-1) and beta's (+1). The mean is detached inside vb, so that vb trains the variance only
    (Nichol & Dhariwal, 2021, section 3.1). `weighting` is of the squared error alone.
    """
    output = output.float()
    channels = latents.shape[1]
    prediction, variance = output[:, :channels], output[:, channels:]
    target = schedule.target(prediction_type, latents, noise, timesteps)
    error = prediction - target
    mse = error.square().flatten(1).mean(1)
    weight = loss_weight(weighting, schedule, prediction_type, timesteps)
    if weight is not None:
        mse = mse * weight
    if variance.shape[1] == 0:
        return LossTerms(mse, None)
    latent_error = schedule.latent_error(prediction_type, error.detach(), timesteps)
    return LossTerms(mse, variational_bound(schedule, latent_error, variance, latents, timesteps))


def variational_bound(
    schedule: NoiseSchedule,
    latent_error: Float[Tensor, "b c h w"],
    variance: Float[Tensor, "b c h w"],
    latents: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits per dimension; at t = 0 -log p(x_0 | x_1).

    Args:
        latent_error: x_0 minus the predicted x_0.
        variance: -1 for the posterior's log variance, +1 for beta's, between them in proportion.
    """
    low = at(schedule.posterior_log_variance, timesteps)
    above = at(schedule.log_variance_range, timesteps) * (variance + 1) / 2  # log variance - low
    mean_error = at(schedule.posterior_mean_x0, timesteps) * latent_error

    kl = 0.5 * (above - 1 + (-above).exp() * (1 + mean_error.square() * (-low).exp()))
    # At t = 0 the posterior's mean is x_0 itself.
    nll = -discretized_log_likelihood(latents, mean_error, 0.5 * (low + above))
    bits = torch.where((timesteps == 0)[:, None, None, None], nll, kl) / math.log(2.0)
    return bits.flatten(1).mean(1)


def discretized_log_likelihood(x: Tensor, error: Tensor, log_std: Tensor) -> Tensor:
    """Log-likelihood of `x` under a Gaussian of mean x - `error`, binned to 255 steps of [-1, 1].

    Made for 8-bit pixels; the released code applies it to latents too, and parity keeps it.
    """
    inverse_std = (-log_std).exp()
    upper, lower = (error + 1 / 255) * inverse_std, (error - 1 / 255) * inverse_std
    # A bin is as likely as its mirror image, and small probabilities have more digits than those near 1.
    near, far = (1 / 255 - error.abs()) * inverse_std, (-1 / 255 - error.abs()) * inverse_std
    inside = _normal_cdf(near) - _normal_cdf(far)
    # The outermost bins reach to infinity.
    probability = torch.where(
        x < -0.999, _normal_cdf(upper), torch.where(x > 0.999, _normal_cdf(-lower), inside)
    )
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    # The tanh approximation of the reference code, not erf: (1 + tanh z) / 2 is sigmoid(2 z).
    return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
