"""The noise schedule of DiT and PixArt: 1000 steps, linear betas from 1e-4 to 0.02."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


class NoiseSchedule:
    """Tables of q(x_t | x_0) and q(x_{t-1} | x_t, x_0), computed in float64, kept in float32.

    Source: Ho et al. (2020) eq. 4 and 7; `posterior_log_variance` repeats its entry of t = 1 at t = 0,
    where the variance is 0 (Nichol & Dhariwal, 2021).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        betas = torch.linspace(BETA_START, BETA_END, NUM_TIMESTEPS, dtype=torch.float64)
        alphas = 1.0 - betas
        cumulative = alphas.cumprod(0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), cumulative[:-1]])
        variance = betas * (1.0 - previous) / (1.0 - cumulative)

        def table(values: Tensor) -> Tensor:
            return values.to(device, torch.float32)

        self.alphas_cumprod = table(cumulative)
        self.signal = table(cumulative.sqrt())
        self.sigma = table((1.0 - cumulative).sqrt())
        self.noise_to_signal = table(((1.0 - cumulative) / cumulative).sqrt())
        posterior_log_variance = torch.cat([variance[1:2], variance[1:]]).log()
        self.posterior_log_variance = table(posterior_log_variance)
        # From the posterior's log variance to beta's.
        self.log_variance_range = table(betas.log() - posterior_log_variance)
        # Weight of x_0 in the posterior's mean.
        self.posterior_mean_x0 = table(betas * previous.sqrt() / (1.0 - cumulative))

    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
        return at(self.signal, timesteps) * latents + at(self.sigma, timesteps) * noise

    def target(
        self, kind: str, latents: Tensor, noise: Tensor, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """What the network is asked for: `epsilon`, `v_prediction` (Salimans & Ho, 2022) or `sample`."""
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return latents
        assert kind == "v_prediction", kind
        return at(self.signal, timesteps) * noise - at(self.sigma, timesteps) * latents

    def latent_error(
        self, kind: str, error: Tensor, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """x_0 minus the x_0 that an output of this kind stands for, from `error` = output - target.

        Two x_0 that are computed on their own differ only in their last digits where there is little noise.
        """
        if kind == "sample":
            return -error
        assert kind in ("epsilon", "v_prediction"), kind
        return at(self.noise_to_signal if kind == "epsilon" else self.sigma, timesteps) * error


def at(table: Float[Tensor, " t"], timesteps: Int[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """Entries of `table`, shaped to scale images."""
    return table[timesteps][:, None, None, None]
