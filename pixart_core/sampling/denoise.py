"""From noise to latents: the sampler's loop, with classifier-free guidance in one batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.diffusion.guidance import guide
from pixart_core.sampling.captured import CapturedTransformer, launch_bound
from pixart_core.sampling.model import SamplingModel
from pixart_core.sampling.plain import PlainTransformer, Predict
from pixart_core.sampling.prepared import PreparedTransformer, can_prepare
from pixart_core.sampling.schedulers import LEARNED_VARIANCE, STOCHASTIC, build_scheduler, inside_interval


def initial_noise(seeds: list[int], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    """Noise of each image from its own seed, drawn on the CPU: batch, order and device do not matter."""
    generator = torch.Generator()
    return torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in seeds])


def noise_generators(seeds: list[int], shape: tuple[int, int, int]) -> list[torch.Generator]:
    """Generators of the noise that a sampler adds on the way: each goes on where `initial_noise` ended."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators:
        torch.randn(shape, generator=generator)
    return generators


@torch.no_grad()  # no inference_mode: tables that a model keeps may be made here, and be trained with later
def denoise(
    model: SamplingModel,
    noise: Float[Tensor, "b c h w"],
    prompts: list[Float[Tensor, "l d"]],
    unconditional: Float[Tensor, "l d"] | None,
    *,
    scheduler: str,
    num_inference_steps: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float] | None = None,
    generators: list[torch.Generator] | None = None,
    fast: bool = True,
) -> Float[Tensor, "b c h w"]:
    """Sample latents (scaled) for encoded prompts.

    Args:
        unconditional: tokens of the negative or empty prompt; None for the model's learned unconditional
            embedding, cut to each caption's length (released code).
        guidance_scale: 1 or less samples without guidance, in half the time.
        guidance_interval: guide only between these shares of the noise schedule (Kynkäänniemi et al., 2024);
            0 is pure noise, 1 the picture. The other steps take half the time.
        generators: one an image (`noise_generators`); samplers that add noise need them.
        fast: compute beforehand what stays the same (`PreparedTransformer`); the result is the same up to
            rounding.

    Raises:
        UserError: the sampler needs a learned variance that the model does not have.
    """
    assert generators is not None or scheduler not in STOCHASTIC, scheduler
    model.outline.check_sampler(scheduler)
    device, dtype, channels = model.device, next(model.transformer.parameters()).dtype, noise.shape[1]
    guided = guidance_scale > 1
    negative = _unconditional(model, prompts, unconditional) if guided else []

    sampler = build_scheduler(scheduler, model.facts.prediction_type)
    sampler.set_timesteps(num_inference_steps, device=device)
    drawn = {"generator": generators} if scheduler in STOCHASTIC else {}
    latents = noise.to(device) * sampler.init_noise_sigma
    predict = _predictor(model, noise, sampler.timesteps, negative, prompts, fast=fast)
    for step, t in enumerate(sampler.timesteps):
        guiding = guided and inside_interval(guidance_interval, int(t))
        given = sampler.scale_model_input(torch.cat([latents] * (2 if guiding else 1)), t)
        output = predict(given.to(dtype), step, guided=guiding)
        prediction = output[:, :channels].float()
        if guiding:
            away, towards = prediction.chunk(2)
            prediction = guide(away, towards, guidance_scale)
        if scheduler in LEARNED_VARIANCE:  # that of the prompt: guidance is for the mean
            variance = output[-len(latents) :, channels:].float()
            prediction = torch.cat([prediction, variance], dim=1)
        latents = sampler.step(prediction, t, latents, return_dict=False, **drawn)[0]
    return latents


def _predictor(
    model: SamplingModel,
    noise: Float[Tensor, "b c h w"],
    timesteps: Tensor,
    negative: list[Float[Tensor, "l d"]],
    positive: list[Float[Tensor, "l d"]],
    *,
    fast: bool,
) -> Predict:
    """The fastest way to ask the model that its weights allow."""
    transformer, size = model.transformer, None
    if transformer.config.use_additional_conditions:
        height, width = (side * model.pixels_per_latent for side in noise.shape[-2:])
        size = height, width
    if not (fast and can_prepare(transformer)):
        return PlainTransformer(transformer, timesteps, negative, positive, size)
    prepared = PreparedTransformer(transformer, timesteps, negative, positive, size)
    patches = noise[0, 0].numel() // transformer.config.patch_size**2
    if launch_bound(model.device, patches * len(negative + positive)):
        return CapturedTransformer(prepared)
    return prepared


def _unconditional(
    model: SamplingModel, prompts: list[Tensor], unconditional: Tensor | None
) -> list[Float[Tensor, "l d"]]:
    if unconditional is not None:
        return [unconditional] * len(prompts)
    assert model.learned_uncond is not None
    return [model.learned_uncond[: len(tokens)].to(tokens) for tokens in prompts]
