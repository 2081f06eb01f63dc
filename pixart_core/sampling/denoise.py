"""From noise to latents: the sampler's loop, with classifier-free guidance in one batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.diffusion.guidance import guide
from pixart_core.diffusion.schedule import NUM_TIMESTEPS
from pixart_core.sampling.model import SamplingModel, pad_tokens
from pixart_core.sampling.schedulers import LEARNED_VARIANCE, STOCHASTIC, build_scheduler


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
) -> Float[Tensor, "b c h w"]:
    """Sample latents (scaled) for encoded prompts.

    Args:
        unconditional: tokens of the negative or empty prompt; None for the model's learned unconditional
            embedding, cut to each caption's length (released code).
        guidance_scale: 1 or less samples without guidance, in half the time.
        guidance_interval: guide only between these shares of the noise schedule (Kynkäänniemi et al., 2024);
            0 is pure noise, 1 the picture. The other steps take half the time.
        generators: one an image (`noise_generators`); samplers that add noise need them.

    Raises:
        UserError: the sampler needs a learned variance that the model does not have.
    """
    assert generators is not None or scheduler not in STOCHASTIC, scheduler
    device, dtype = model.device, next(model.transformer.parameters()).dtype
    channels = noise.shape[1]
    model.outline.check_sampler(scheduler)
    guided = guidance_scale > 1
    if guided:
        prompts = [*_unconditional(model, prompts, unconditional), *prompts]
    text, mask = pad_tokens(prompts)
    conditions = {"text_embeds": text.to(device, dtype), "text_mask": mask.to(device)}
    conditions |= _micro_conditions(model, noise, len(prompts))

    sampler = build_scheduler(scheduler, model.facts.prediction_type)
    sampler.set_timesteps(num_inference_steps, device=device)
    drawn = {"generator": generators} if scheduler in STOCHASTIC else {}
    latents = noise.to(device) * sampler.init_noise_sigma
    for t in sampler.timesteps:
        guiding = guided and _inside(guidance_interval, int(t))
        given = sampler.scale_model_input(torch.cat([latents] * (2 if guiding else 1)), t)
        # A step without guidance asks for the prompts' half alone, the last one.
        conditions_now = {name: tensor[-len(given) :] for name, tensor in conditions.items()}
        output = model.transformer(given.to(dtype), t.expand(len(given)), **conditions_now)
        prediction = output[:, :channels].float()
        if guiding:
            negative, positive = prediction.chunk(2)
            prediction = guide(negative, positive, guidance_scale)
        if scheduler in LEARNED_VARIANCE:  # that of the prompt: guidance is for the mean
            variance = output[-len(latents) :, channels:].float()
            prediction = torch.cat([prediction, variance], dim=1)
        latents = sampler.step(prediction, t, latents, return_dict=False, **drawn)[0]
    return latents


def _inside(interval: tuple[float, float] | None, timestep: int) -> bool:
    if interval is None:
        return True
    return interval[0] <= 1 - timestep / (NUM_TIMESTEPS - 1) <= interval[1]


def _unconditional(
    model: SamplingModel, prompts: list[Tensor], unconditional: Tensor | None
) -> list[Float[Tensor, "l d"]]:
    if unconditional is not None:
        return [unconditional] * len(prompts)
    assert model.learned_uncond is not None
    return [model.learned_uncond[: len(tokens)].to(tokens) for tokens in prompts]


def _micro_conditions(model: SamplingModel, noise: Tensor, count: int) -> dict[str, Tensor]:
    """Size and aspect ratio of the picture, as diffusers feeds them."""
    if not model.transformer.config.use_additional_conditions:
        return {}
    height, width = (side * model.pixels_per_latent for side in noise.shape[-2:])
    resolution = torch.tensor([[height, width]], dtype=torch.float32, device=model.device)
    ratio = torch.tensor([[height / width]], dtype=torch.float32, device=model.device)
    return {"resolution": resolution.expand(count, 2), "aspect_ratio": ratio.expand(count, 1)}
