"""From noise to latents: the sampler's loop, with classifier-free guidance in one batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.diffusion.guidance import guide
from pixart_core.sampling.model import SamplingModel, pad_tokens
from pixart_core.sampling.schedulers import build_scheduler


def initial_noise(seeds: list[int], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    """Noise of each image from its own seed, drawn on the CPU: batch, order and device do not matter."""
    generator = torch.Generator()
    return torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in seeds])


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
) -> Float[Tensor, "b c h w"]:
    """Sample latents (scaled) for encoded prompts.

    Args:
        unconditional: tokens of the negative or empty prompt; None for the model's learned unconditional
            embedding, cut to each caption's length (released code).
        guidance_scale: 1 or less samples without guidance, in half the time.
    """
    device, dtype = model.device, next(model.transformer.parameters()).dtype
    guided = guidance_scale > 1
    if guided:
        prompts = [*_unconditional(model, prompts, unconditional), *prompts]
    text, mask = pad_tokens(prompts)
    text, mask = text.to(device, dtype), mask.to(device)
    sizes = _micro_conditions(model, noise, len(prompts))

    sampler = build_scheduler(scheduler, model.facts.prediction_type)
    sampler.set_timesteps(num_inference_steps, device=device)
    latents = noise.to(device) * sampler.init_noise_sigma
    channels = latents.shape[1]
    for t in sampler.timesteps:
        given = sampler.scale_model_input(torch.cat([latents] * (2 if guided else 1)), t)
        output = model.transformer(given.to(dtype), t.expand(len(given)), text, mask, **sizes)
        prediction = output[:, :channels].float()  # these samplers do not use the learned variance
        if guided:
            negative, positive = prediction.chunk(2)
            prediction = guide(negative, positive, guidance_scale)
        latents = sampler.step(prediction, t, latents, return_dict=False)[0]
    return latents


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
