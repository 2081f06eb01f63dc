"""Samplers: diffusers' schedulers, set up for the noise schedule that the models are trained with."""

from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from pixart_core.diffusion.schedule import BETA_END, BETA_START, NUM_TIMESTEPS


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
    """`dpm-solver`: DPM-Solver++ 2M, the paper's (20 steps, uniform in time). `ddim`: without noise."""
    config = scheduler_config(prediction_type)
    if name == "dpm-solver":
        return DPMSolverMultistepScheduler(**config, solver_order=2, algorithm_type="dpmsolver++")
    assert name == "ddim", name
    # Without clipping: latents are not confined to [-1, 1].
    return DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=False)
