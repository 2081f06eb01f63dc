"""A step of training on random features: ours eager and compiled beside diffusers' model, interleaved.

    python benchmarks/train_xl.py --json benchmarks/results/train_xl_gpu.json
    OMP_NUM_THREADS=1 python benchmarks/train_xl.py --size S --layers 4 --batch 4 --json FILE  # without a GPU

The first is XL/2 at 256 px. All variants take the same step of ours (loss with learned variance, backward,
clipping, fused AdamW, averages), from the same weights, on the same batch, whose captions vary in length.
Times are CUDA events on a GPU and processor seconds on a CPU, medians of the rounds; ratios are medians of
the ratios within a round. Ours is measured twice as a control: a run whose control leaves 0.97 to 1.03 says
nothing. MFU counts the model's own FLOPs (`training_flops`) against the datasheet.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from machine import describe_machine, write_result
from torch import Tensor, nn

from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.models.build import build_transformer
from pixart_core.models.compiling import check_compiler, compile_blocks
from pixart_core.models.config import TransformerConfig
from pixart_core.recipe.gpus import gpu_named
from pixart_core.sizes import SIZES
from pixart_core.training.batches import TrainingBatch
from pixart_core.training.ema import Ema
from pixart_core.training.memory import keep_freed_memory
from pixart_core.training.optimizer import Optimizers, build_adamw
from pixart_core.training.pace import batch_flops
from pixart_core.training.step import batch_loss, train_step

OURS, COMPILED, DIFFUSERS, CONTROL = "ours", "ours, compiled", "diffusers", "ours again"


class Diffusers(nn.Module):
    """diffusers' model, called as ours is."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inner = PixArtTransformer2DModel.from_config(config.to_diffusers())

    def forward(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, text_mask: Tensor) -> Tensor:
        return self.inner(
            latents,
            encoder_hidden_states=text_embeds,
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=text_mask,
        ).sample


@dataclasses.dataclass
class Variant:
    """A model with its optimiser and averages, and what was measured.

    Attributes:
        own: bytes that it keeps on the GPU between steps.
        seconds: of a step, one entry a round.
    """

    model: nn.Module
    optimizers: Optimizers
    ema: Ema
    own: int
    first_seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak: int = 0


def main() -> None:
    """Build the variants, measure them in turns, print and store the figures."""
    options = parse_options()
    device = torch.device(options.device)
    machine = describe_machine()
    if device.type == "cpu":
        keep_freed_memory()
    config = config_of(options)
    batch = random_batch(config, options, device)
    step = functools.partial(
        train_step,
        micro_batches=[batch],
        loss_fn=functools.partial(
            batch_loss, schedule=NoiseSchedule(device), prediction_type="epsilon", autocast=torch.bfloat16
        ),
        count=1,
        max_grad_norm=0.01,
    )
    variants = {name: build(name, config, options, device) for name in (OURS, COMPILED, DIFFUSERS)}
    for variant in variants.values():
        warm_up(variant, step, device)
    variants[CONTROL] = dataclasses.replace(variants[OURS], seconds=[])
    for number in range(options.rounds):
        for variant in list(variants.values())[:: 1 if number % 2 == 0 else -1]:
            variant.seconds.append(measure(variant, step, options.steps, device))
    results = report(variants, config, batch, options, device)
    if options.json:
        write_result(options.json, "benchmarks/train_xl.py", results, machine)


def parse_options() -> argparse.Namespace:
    """Defaults are those of a GPU with 80 GB or more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="XL")
    parser.add_argument("--layers", type=int, help="instead of those of the size")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--text-tokens", type=int, default=120, help="of the longest caption")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="a round and variant")
    parser.add_argument("--gradient-checkpointing", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> TransformerConfig:
    """PixArt of the asked size."""
    shape = SIZES[options.size]._asdict() | ({"num_layers": options.layers} if options.layers else {})
    return TransformerConfig(sample_size=options.image_size // 8, **shape)


def random_batch(
    config: TransformerConfig, options: argparse.Namespace, device: torch.device
) -> TrainingBatch:
    """Latents, noise and captions of half to all of `text_tokens` tokens, the same in every run."""
    torch.manual_seed(0)
    count, side, length = options.batch, options.image_size // 8, options.text_tokens
    lengths = torch.linspace(length / 2, length, count).round().long()
    return TrainingBatch(
        latents=torch.randn(count, config.in_channels, side, side),
        noise=torch.randn(count, config.in_channels, side, side),
        timesteps=torch.randint(1000, (count,)),
        text=torch.randn(count, length, config.caption_channels),
        mask=torch.arange(length) < lengths[:, None],
        labels=None,
        resolution=torch.full((count, 2), float(options.image_size)),
        aspect_ratio=torch.ones(count, 1),
        ids=[str(number) for number in range(count)],
    ).to(device)


def build(name: str, config: TransformerConfig, options: argparse.Namespace, device: torch.device) -> Variant:
    """One variant; all have the weights of one draw, none of them zero."""
    before = allocated(device)
    torch.manual_seed(1)
    ours = build_transformer(config)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)
    model: nn.Module = ours
    if name == DIFFUSERS:
        model = Diffusers(config)
        model.inner.load_state_dict(ours.state_dict(), strict=True)
        if options.gradient_checkpointing != "none":
            model.inner.enable_gradient_checkpointing()
    else:
        ours.gradient_checkpointing = options.gradient_checkpointing
    model.to(device).train()
    if name == COMPILED:
        check_compiler(device)
        compile_blocks(ours)
    optimizers = build_adamw(model, learning_rate=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.03)
    return Variant(model, optimizers, Ema(model, 0.9999), own=allocated(device) - before)


def warm_up(variant: Variant, step: Callable[..., Any], device: torch.device) -> None:
    """Compile what is to be compiled, let the optimiser make its moments, find the peak of memory."""
    others = allocated(device) - variant.own
    begin = time.perf_counter()
    for number in range(3):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        stats = step(variant.model, variant.optimizers, variant.ema)
        variant.losses.append(float(stats.loss))
        if number == 0:
            variant.first_seconds = time.perf_counter() - begin
    if device.type == "cuda":
        variant.peak = torch.cuda.max_memory_allocated(device) - others


def measure(variant: Variant, step: Callable[..., Any], steps: int, device: torch.device) -> float:
    """Seconds of a step, the mean of some."""
    take = functools.partial(step, variant.model, variant.optimizers, variant.ema)
    if device.type != "cuda":
        begin = time.process_time()
        for _ in range(steps):
            take()
        return (time.process_time() - begin) / steps
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(steps):
        take()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000 / steps


def report(
    variants: dict[str, Variant],
    config: TransformerConfig,
    batch: TrainingBatch,
    options: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    """Figures of all variants, printed and returned."""
    flops = batch_flops(config, batch)
    gpu = gpu_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    control = ratio(variants.pop(CONTROL).seconds, variants[OURS].seconds)
    print(f"{device}, {flops / 1e12:.3f} TFLOP a step; control {control:.3f}")
    rows = []
    for name, variant in variants.items():
        seconds = statistics.median(variant.seconds)
        row = {
            "variant": name,
            "seconds_a_step": round(seconds, 5),
            "images_per_second": round(options.batch / seconds, 3),
            "tflops": round(flops / seconds / 1e12, 3),
            "mfu": None if gpu is None else round(flops / seconds / gpu.flops, 4),
            "peak_gpu_bytes": variant.peak or None,
            "speed_against_diffusers": round(ratio(variants[DIFFUSERS].seconds, variant.seconds), 3),
            "first_step_seconds": round(variant.first_seconds, 1),
            "losses": [round(loss, 5) for loss in variant.losses],
        }
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items() if value is not None), flush=True)
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    clock = "CUDA events" if device.type == "cuda" else "processor seconds"
    return {"settings": settings, "clock": clock, "flops_a_step": flops, "control": control, "variants": rows}


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios within a round."""
    return round(statistics.median(one / other for one, other in zip(above, below, strict=True)), 3)


def allocated(device: torch.device) -> int:
    """Bytes of tensors on the GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


if __name__ == "__main__":
    main()
