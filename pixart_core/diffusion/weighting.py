"""How much a timestep counts: weights of the squared error, as those of the clean latents' error."""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixart_core.diffusion.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Weighting:
    """What the error of the clean latents counts, SNR being abar / (1 - abar).

    Attributes:
        kind: `uniform`: the network's own error counts 1, whatever it predicts (the paper).
            `min_snr`: min(SNR, snr_gamma) (Hang et al., 2023).
            `truncated_snr`: max(SNR, 1), at most snr_gamma (Salimans & Ho, 2022, section 4, bounded).
    """

    kind: Literal["uniform", "min_snr", "truncated_snr"] = "uniform"
    snr_gamma: float = 5.0


UNIFORM = Weighting()


def loss_weight(
    weighting: Weighting, schedule: NoiseSchedule, prediction_type: str, timesteps: Int[Tensor, " b"]
) -> Float[Tensor, " b"] | None:
    """What the squared error of a prediction is multiplied with; None: nothing.

    Weights of the clean latents' error, divided by what that error is in the network's own terms: with them
    every kind of prediction trains for the same.
    """
    if weighting.kind == "uniform":
        return None
    snr = schedule.noise_to_signal[timesteps] ** -2
    low = 1.0 if weighting.kind == "truncated_snr" else 0.0
    # error of epsilon = SNR x error of x_0; error of v = (SNR + 1) x error of x_0
    in_own_terms = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}
    return snr.clamp(low, weighting.snr_gamma) / in_own_terms[prediction_type]
