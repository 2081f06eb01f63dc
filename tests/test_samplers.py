"""Laws of the samplers: diffusers' pipeline draws the same; each image's noise comes from its seed alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    PixArtAlphaPipeline,
    SASolverScheduler,
)
from drawn_images import pixels
from pydantic import ValidationError
from tiny_pipelines import open_model, write_tiny_pipeline

from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.denoise import denoise, initial_noise, noise_generators
from pixart_core.sampling.model import SamplingModel
from pixart_core.sampling.sample import run_sampling

PROMPTS = ["a red circle", "two blue squares on a white background"]
SHAPE = (3, 8, 8)
SAMPLERS = ("dpm-solver", "sa-solver", "iddpm", "ddim", "lcm")
# As the users of diffusers make them from the released pipeline's `scheduler_config.json`.
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
THEIRS = {
    "dpm-solver": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "sa-solver": (SASolverScheduler, {"algorithm_type": "data_prediction"}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "lcm": (LCMScheduler, {"original_inference_steps": 50}),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(pipeline) -> SamplingModel:
    return open_model(pipeline, PROMPTS)


def draw(model: SamplingModel, scheduler: str, steps: int, guidance: float, interval=None, seeds=(3, 4)):
    prompts, unconditional = model.encoded(PROMPTS[: len(seeds)], "")
    return denoise(
        model,
        initial_noise(list(seeds), SHAPE),
        prompts,
        unconditional,
        scheduler=scheduler,
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_interval=interval,
        generators=noise_generators(list(seeds), SHAPE),
    )


@pytest.mark.parametrize(
    ("scheduler", "steps", "guidance"),
    [
        ("dpm-solver", 20, 4.5),
        ("sa-solver", 25, 4.5),
        ("sa-solver", 3, 1.0),
        ("ddim", 20, 4.5),
        ("lcm", 4, 1.0),
    ],
)
def test_latents_equal_those_of_diffusers_pipeline_from_the_same_generators(
    pipeline, model, scheduler, steps, guidance
) -> None:
    kind, options = THEIRS[scheduler]
    theirs = PixArtAlphaPipeline.from_pretrained(pipeline, scheduler=kind(**BETAS, **options))
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        prompt=PROMPTS,
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        output_type="latent",
        use_resolution_binning=False,
        clean_caption=False,
    ).images
    ours = draw(model, scheduler, steps, guidance)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_iddpm_is_ancestral_sampling_of_the_respaced_process_with_the_learned_variance(model) -> None:
    """Against Nichol & Dhariwal (2021), eq. 15, and the respacing of their code, in float64."""
    steps, guidance, seeds = 10, 4.5, [3, 4]
    kept = [round(999 / (steps - 1) * i) for i in range(steps)]
    cumulative = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[kept]
    previous = np.append(1.0, cumulative[:-1])
    betas = 1 - cumulative / previous
    posterior = betas * (1 - previous) / (1 - cumulative)

    prompts, unconditional = model.encoded(PROMPTS, "")
    padded = torch.nn.utils.rnn.pad_sequence([unconditional, unconditional, *prompts], batch_first=True)
    lengths = torch.tensor([len(unconditional)] * 2 + [len(tokens) for tokens in prompts])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise() -> torch.Tensor:
        return torch.stack([torch.randn(SHAPE, generator=generator) for generator in generators]).double()

    x = noise()
    for i in reversed(range(steps)):
        with torch.no_grad():
            output = model.transformer(
                torch.cat([x, x]).float(), torch.full((4,), kept[i]), padded, mask
            ).double()
        negative, positive = output[:, :3].chunk(2)
        epsilon = negative + guidance * (positive - negative)
        x0 = (x - math.sqrt(1 - cumulative[i]) * epsilon) / math.sqrt(cumulative[i])
        mean = (math.sqrt(previous[i]) * betas[i] * x0 + math.sqrt(1 - betas[i]) * (1 - previous[i]) * x) / (
            1 - cumulative[i]
        )
        x = mean
        if i > 0:
            share = (output[2:, 3:] + 1) / 2
            log_variance = share * math.log(betas[i]) + (1 - share) * math.log(posterior[i])
            x = mean + (0.5 * log_variance).exp() * noise()
    ours = draw(model, "iddpm", steps, guidance).double()
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-5 * float(x.abs().max()))


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_latents_of_an_image_do_not_depend_on_who_else_is_in_the_batch(model, scheduler) -> None:
    together = draw(model, scheduler, 5, 1.0, seeds=(3, 4))
    alone = draw(model, scheduler, 5, 1.0, seeds=(3,))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("scheduler", ["sa-solver", "iddpm", "lcm"])
def test_images_of_stochastic_samplers_do_not_depend_on_batch_size_or_order(
    pipeline, tmp_path, scheduler
) -> None:
    def pictures(name: str, batch_size: int, missing: int | None = None) -> list[np.ndarray]:
        step = SampleStep(
            checkpoint=str(pipeline),
            prompts=("a red circle", "two blue squares", "red"),
            scheduler=scheduler,
            num_inference_steps=5,
            batch_size=batch_size,
        )
        folder = tmp_path / name
        run_sampling(step, folder, Silent())
        if missing is not None:
            (folder / f"images/{missing:06d}.png").unlink()
            (folder / "card.json").unlink()
            run_sampling(step, folder, Silent())
        return pixels(folder)

    whole = pictures("whole", 3)
    for other in (pictures("small", 1), pictures("again", 2, missing=1)):
        # Noise is the same; sums that are grouped differently round differently.
        assert max(np.abs(a - b).max() for a, b in zip(whole, other, strict=True)) <= 1
    assert np.abs(whole[0] - whole[2]).max() > 8


@pytest.mark.parametrize("scheduler", ["dpm-solver", "iddpm"])
def test_the_whole_interval_is_guidance_throughout_and_an_empty_one_is_none(model, scheduler) -> None:
    always = draw(model, scheduler, 6, 4.5)
    assert torch.equal(draw(model, scheduler, 6, 4.5, (0.0, 1.0)), always)
    never = draw(model, scheduler, 6, 4.5, (0.501, 0.502))
    torch.testing.assert_close(never, draw(model, scheduler, 6, 1.0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(never, always, atol=1e-2)


def test_inside_the_interval_guidance_is_on_and_outside_it_the_model_is_asked_once(model) -> None:
    """Against diffusers' scheduler with a scale that changes by the noise level."""
    asked: list[int] = []
    hook = model.transformer.pos_embed.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    ours = draw(model, "ddim", 10, 4.5, (0.25, 0.75), seeds=(3,))
    hook.remove()

    prompts, unconditional = model.encoded(PROMPTS[:1], "")
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    assert asked == [2 if 250 <= t <= 749 else 1 for t in scheduler.timesteps]
    assert set(asked) == {1, 2}
    latents = initial_noise([3], SHAPE)

    def predict(tokens: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(1, len(tokens), dtype=torch.bool)
        with torch.no_grad():
            return model.transformer(latents, t[None], tokens[None], mask)[:, :3]

    for t in scheduler.timesteps:
        scale = 4.5 if 250 <= t <= 749 else 1.0
        negative, positive = predict(unconditional, t), predict(prompts[0], t)
        latents = scheduler.step(negative + scale * (positive - negative), t, latents).prev_sample
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-5 * float(latents.abs().max()))


def test_defaults_follow_the_sampler() -> None:
    steps = {name: SampleStep(checkpoint="x", scheduler=name) for name in SAMPLERS}
    assert {name: step.num_inference_steps for name, step in steps.items()} == {
        "dpm-solver": 20,
        "sa-solver": 25,
        "iddpm": 100,
        "ddim": 20,
        "lcm": 4,
    }
    assert {name: step.guidance_scale for name, step in steps.items() if step.guidance_scale != 4.5} == {
        "lcm": 1.0
    }
    assert SampleStep(checkpoint="x", scheduler="iddpm", num_inference_steps=7).num_inference_steps == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "lcm", "num_inference_steps": 51}, "lcm has at most 50"),
        ({"scheduler": "iddpm", "num_inference_steps": 1001}, "iddpm has at most 1000"),
        ({"guidance_interval": (0.8, 0.2)}, "ends before it starts"),
        ({"guidance_interval": (0.2, 1.5)}, "less than or equal to 1"),
    ],
)
def test_impossible_options_are_named(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        SampleStep(checkpoint="x", **options)


def test_iddpm_without_a_learned_variance_is_refused_before_anything_is_written(tmp_path) -> None:
    pipeline = write_tiny_pipeline(tmp_path / "model", learned_variance=False)
    step = SampleStep(checkpoint=str(pipeline), prompts=("red",), scheduler="iddpm", num_inference_steps=2)
    with pytest.raises(UserError, match=r"no learned variance .* use dpm-solver"):
        run_sampling(step, tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheduler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_any_number_of_steps_gives_finite_latents(model, scheduler, steps) -> None:
    assert draw(model, scheduler, steps, 4.5).isfinite().all()
