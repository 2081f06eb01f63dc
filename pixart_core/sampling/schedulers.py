"""Samplers: diffusers' schedulers, set up for the noise schedule that the models are trained with."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    SASolverScheduler,
)

from pixart_core.diffusion.schedule import BETA_END, BETA_START, NUM_TIMESTEPS

# Samplers that add noise on the way: each image needs a generator of its own.
STOCHASTIC = frozenset({"sa-solver", "iddpm", "lcm"})
LEARNED_VARIANCE = frozenset({"iddpm"})


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """What every scheduler has to know about the training."""
    return {
        "num_train_timesteps": NUM_TIMESTEPS,
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "beta_schedule": "linear",
        "prediction_type": prediction_type,
    }


def build_scheduler(name: str, prediction_type: str) -> Any:
    """A fresh scheduler (a multistep one keeps state, so each batch needs its own).

    `dpm-solver`: DPM-Solver++ 2M, the paper's (20 steps, uniform in time). `sa-solver`: predictor and
    corrector of order 2, noise between timesteps 200 and 800 (Xue et al., 2023; the released code's).
    `iddpm`: ancestral with the learned variance, its timesteps spread as `space_timesteps` of the released
    code does. `ddim`: without noise. `lcm`: Luo et al., 2023.
    """
    config = scheduler_config(prediction_type)
    # Without clipping: latents are not confined to [-1, 1].
    if name == "dpm-solver":
        return DPMSolverMultistepScheduler(**config, solver_order=2, algorithm_type="dpmsolver++")
    if name == "sa-solver":
        return SASolverScheduler(**config, predictor_order=2, corrector_order=2, tau_func=_tau)
    if name == "iddpm":
        variance = {"variance_type": "learned_range", "timestep_spacing": "linspace"}
        return DDPMScheduler(**config, **variance, clip_sample=False)
    if name == "lcm":
        return LCMScheduler(**config, clip_sample=False)
    assert name == "ddim", name
    return DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=False)


def inside_interval(interval: tuple[float, float] | None, timestep: int) -> bool:
    """Whether a step at `timestep` is guided: `interval` in shares of the noise schedule, None being all."""
    if interval is None:
        return True
    return interval[0] <= 1 - timestep / (NUM_TIMESTEPS - 1) <= interval[1]


def _tau(timestep: Any) -> int:
    """How much noise SA-Solver adds at a timestep."""
    return 1 if 200 <= timestep <= 800 else 0
