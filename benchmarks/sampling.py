"""Sampling with guidance on random weights, beside diffusers' `PixArtAlphaPipeline`, interleaved.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py --json benchmarks/results/sampling_step_fp32.json
    OMP_NUM_THREADS=1 python benchmarks/sampling.py --part image --json FILE

A step is one pass of XL/2 over the prompt and the empty caption. An image is 20 steps of DPM-Solver++ and the
decoding by a VAE of Stable Diffusion's size; the prompt's tokens are given. Both work on the same weights,
noise and tokens; how far their outputs are apart stands beside the times. Times are processor seconds of one
thread (CUDA events on a GPU), medians of the rounds; ratios are medians of the ratios within a round. Ours is
measured twice as a control: a run whose control leaves 0.97 to 1.03 says nothing.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from machine import describe_machine, write_result
from torch import Tensor, nn

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.captured import CapturedTransformer, launch_bound
from pixart_core.sampling.denoise import denoise
from pixart_core.sampling.model import SamplingModel
from pixart_core.sampling.prepared import PreparedTransformer
from pixart_core.sampling.schedulers import scheduler_config
from pixart_core.sizes import SIZES

OURS, PLAIN, DIFFUSERS, CONTROL = "ours", "ours without the fast path", "diffusers", "ours again"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS, GUIDANCE, TEXT_TOKENS = 20, 4.5, 120
Variants = dict[str, Callable[[], Tensor]]


def main() -> None:
    """Build the model, measure the variants in turns, print and store the figures."""
    options = parse_options()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    machine = describe_machine()
    torch.manual_seed(0)
    ours = random_transformer(options, device)
    theirs = diffusers_transformer(ours)
    with torch.no_grad():
        variants = (steps if options.part == "step" else images)(ours, theirs, options, device)
        outputs = {name: variant() for name, variant in variants.items()}
        seconds = {name: [] for name in [*variants, CONTROL]}
        variants[CONTROL] = variants[OURS]
        for number in range(options.rounds):
            for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
                seconds[name].append(measure(variants[name], device))
    results = report(outputs, seconds, options)
    if options.json:
        write_result(options.json, "benchmarks/sampling.py", results, machine)


def parse_options() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("step", "image"), default="step")
    parser.add_argument("--size", choices=sorted(SIZES), default="XL")
    parser.add_argument("--layers", type=int, help="instead of those of the size")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--text-tokens", type=int, default=20, help="of the prompt; diffusers pads to 120")
    parser.add_argument("--images", type=int, default=1, help="of one prompt, together")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plain", action="store_true", help="measure ours without the fast path, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    return parser.parse_args()


def random_transformer(options: argparse.Namespace, device: torch.device) -> PixArtTransformer:
    """PixArt of the asked size, no weight zero."""
    shape = SIZES[options.size]._asdict() | ({"num_layers": options.layers} if options.layers else {})
    model = build_transformer(TransformerConfig(sample_size=options.image_size // 8, **shape))
    assert isinstance(model, PixArtTransformer)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model.to(device, DTYPES[options.dtype]).eval().requires_grad_(False)


def diffusers_transformer(ours: PixArtTransformer) -> PixArtTransformer2DModel:
    """diffusers' model on the very same weights."""
    with torch.device("meta"):
        theirs = PixArtTransformer2DModel.from_config(ours.config.to_diffusers())
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    theirs.pos_embed.pos_embed = diffusers_positions(ours)
    return theirs.eval().requires_grad_(False)


def diffusers_positions(ours: PixArtTransformer) -> Tensor:
    """The table that a model on the meta device lacks; it is not among the weights."""
    side = ours.config.sample_size // ours.config.patch_size
    return ours.pos_embed.positions(side, side, next(ours.parameters()).device)[None]


def steps(
    ours: PixArtTransformer,
    theirs: PixArtTransformer2DModel,
    options: argparse.Namespace,
    device: torch.device,
) -> Variants:
    """One step with guidance, in the middle of the schedule."""
    dtype, side = DTYPES[options.dtype], options.image_size // 8
    negative, positive = captions(options, dtype, device)
    latents = torch.randn(options.images, 4, side, side, device=device).to(dtype).repeat(2, 1, 1, 1)
    timesteps = torch.linspace(999, 0, STEPS, device=device).long()
    prepared = PreparedTransformer(ours, timesteps, negative, positive)
    if launch_bound(device, len(latents) * (side // 2) ** 2):
        prepared = CapturedTransformer(prepared)
    text, mask = padded([*negative, *positive])
    when = timesteps[STEPS // 2].expand(len(latents))

    def diffusers_step() -> Tensor:
        return theirs(
            latents,
            encoder_hidden_states=text,
            timestep=when,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=mask,
        ).sample

    variants: Variants = {
        OURS: lambda: prepared(latents, STEPS // 2, guided=True),
        DIFFUSERS: diffusers_step,
    }
    if options.plain:
        variants[PLAIN] = lambda: ours(latents, when, text, mask.bool())
    return variants


def images(
    ours: PixArtTransformer,
    theirs: PixArtTransformer2DModel,
    options: argparse.Namespace,
    device: torch.device,
) -> Variants:
    """20 steps and the decoding: pictures in [-1, 1]."""
    dtype, side = DTYPES[options.dtype], options.image_size // 8
    negative, positive = captions(options, dtype, device)
    noise = torch.randn(options.images, 4, side, side)
    vae = random_vae(device)
    model = SamplingModel(
        source="random weights",
        transformer=ours,
        vae=vae,
        facts=ModelFacts(vae="", text_encoder=""),
        learned_uncond=None,
        device=device,
    )
    scheduler = DPMSolverMultistepScheduler(**scheduler_config("epsilon"), solver_order=2)
    pipeline = PixArtAlphaPipeline(None, None, vae, theirs, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    (text, far), (mask, far_mask) = (
        torch.stack(part) for part in zip(padded(positive), padded(negative), strict=True)
    )

    def ours_image(*, fast: bool = True) -> Tensor:
        latents = denoise(
            model,
            noise,
            positive,
            negative[0],
            scheduler="dpm-solver",
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            fast=fast,
        )
        return model.decode(latents)

    def diffusers_image() -> Tensor:
        latents = pipeline(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=text,
            prompt_attention_mask=mask,
            negative_prompt_embeds=far,
            negative_prompt_attention_mask=far_mask,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=options.image_size,
            width=options.image_size,
            latents=noise.to(device, dtype),
            output_type="latent",
            use_resolution_binning=False,
        ).images
        # The pipeline would decode in the type of the VAE as well.
        return vae.decode(latents.float() / vae.config.scaling_factor).sample.clamp(-1, 1)

    variants: Variants = {OURS: ours_image, DIFFUSERS: diffusers_image}
    if options.plain:
        variants[PLAIN] = lambda: ours_image(fast=False)
    return variants


def captions(
    options: argparse.Namespace, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens of the empty caption (one) and of the prompt, for each image."""
    width = 4096
    negative = torch.randn(1, width, device=device).to(dtype)
    positive = torch.randn(options.text_tokens, width, device=device).to(dtype)
    return [negative] * options.images, [positive] * options.images


def padded(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens as diffusers' pipeline gives them, and its mask."""
    text = torch.stack([nn.functional.pad(one, (0, 0, 0, TEXT_TOKENS - len(one))) for one in tokens])
    lengths = torch.tensor([len(one) for one in tokens], device=text.device)
    return text, (torch.arange(TEXT_TOKENS, device=text.device) < lengths[:, None]).to(text.dtype)


def random_vae(device: torch.device) -> AutoencoderKL:
    """Of Stable Diffusion's size."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )
    return vae.eval().requires_grad_(False).to(device)


def measure(variant: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type != "cuda":
        begin = time.process_time()
        variant()
        return time.process_time() - begin
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    variant()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def report(
    outputs: dict[str, Tensor], seconds: dict[str, list[float]], options: argparse.Namespace
) -> dict[str, Any]:
    """Figures of all variants, printed and returned."""
    control = ratio(seconds.pop(CONTROL), seconds[OURS])
    if not 0.97 <= control <= 1.03:
        warnings.warn(f"control {control}: the machine was too restless, this run says nothing", stacklevel=1)
    reference = outputs[DIFFUSERS].double()
    rows = []
    for name, output in outputs.items():
        difference = (output.double() - reference).abs()
        rows.append(
            {
                "variant": name,
                "seconds": round(statistics.median(seconds[name]), 4),
                "speed_against_diffusers": ratio(seconds[DIFFUSERS], seconds[name]),
                "largest_difference": float(difference.max()),
                "rms_difference": float(difference.square().mean().sqrt()),
                "largest_output": float(reference.abs().max()),
            }
        )
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(f"control {control}")
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    clock = "CUDA events" if options.device == "cuda" else "processor seconds"
    return {"settings": settings, "clock": clock, "control": control, "variants": rows}


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios within a round."""
    return round(statistics.median(one / other for one, other in zip(above, below, strict=True)), 3)


if __name__ == "__main__":
    main()
