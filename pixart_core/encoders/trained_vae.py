"""A small `AutoencoderKL` trained on the data itself, for experiments without a download."""

import dataclasses
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor

from pixart_core.artifacts.publish import write_bytes
from pixart_core.errors import PixartError
from pixart_core.progress import Progress
from pixart_core.seeding import derive_seed

_SECONDS_BETWEEN_CHECKPOINTS = 30.0


@dataclasses.dataclass(frozen=True)
class VaeTraining:
    """How to train.

    Attributes:
        block_out_channels: one entry a level; each level after the first halves the sides.
        kl_weight: of the mean KL divergence of a latent value from N(0, 1), in nats.
        seed: of weights, order and noise.
    """

    block_out_channels: Sequence[int]
    latent_channels: int
    image_size: int
    train_steps: int
    batch_size: int
    learning_rate: float
    kl_weight: float
    seed: int


def build_vae(options: VaeTraining) -> AutoencoderKL:
    """The untrained autoencoder; weights depend on `options.seed` only."""
    levels = len(options.block_out_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(options.seed, "vae", "init"))
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(options.block_out_channels),
            layers_per_block=1,
            latent_channels=options.latent_channels,
            # Groups of a single channel would normalise a flat colour away.
            norm_num_groups=max(1, math.gcd(32, *options.block_out_channels) // 4),
            sample_size=options.image_size,
            mid_block_add_attention=False,
        )


def train_vae(
    options: VaeTraining,
    images: UInt8[Tensor, "n 3 size size"],
    checkpoint: Path,
    progress: Progress,
    device: torch.device | str = "cpu",
) -> AutoencoderKL:
    """Train on `images`; a killed run goes on from `checkpoint` and gives the same weights.

    The loss is L1 + L2 of the pixels + L1 of their differences to the right and lower neighbours (edges
    blur otherwise) + KL. AdamW, 2 % warm-up, cosine decay to zero.

    Raises:
        PixartError: the loss is not finite.
    """
    vae = build_vae(options).train()
    vae.to(torch.device(device))  # type: ignore[arg-type]  # diffusers wraps `to` without its types
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0
    )
    first = _load(checkpoint, vae, optimizer)
    progress.start("train vae", options.train_steps)
    progress.advance("train vae", first)
    saved = time.monotonic()
    for step in range(first, options.train_steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _schedule(step, options.train_steps)
        generator = torch.Generator().manual_seed(derive_seed(options.seed, "vae", step))
        rows = torch.randint(len(images), (options.batch_size,), generator=generator)
        pixels = images[rows].to(device).float() / 127.5 - 1
        loss = _loss(vae, pixels, options.kl_weight, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        last = step + 1 == options.train_steps
        if step % 20 == 0 or last:
            if not torch.isfinite(loss):
                raise PixartError(f"vae training, step {step}: loss {loss.item():g}; lower its learning_rate")
            progress.advance("train vae", 0, note=f"loss {loss.item():.4f}")
        progress.advance("train vae")
        if last or time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            _save(checkpoint, vae, optimizer, step + 1)
            saved = time.monotonic()
    progress.finish("train vae")
    return vae.eval().requires_grad_(False)


def _schedule(step: int, total: int) -> float:
    warmup = max(1, total // 50)
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))


def _loss(
    vae: AutoencoderKL, pixels: Float[Tensor, "b 3 size size"], kl_weight: float, generator: torch.Generator
) -> Float[Tensor, ""]:
    latents = vae.encode(pixels).latent_dist
    noise = torch.randn(latents.mean.shape, generator=generator).to(pixels.device)
    error = vae.decode(latents.mean + latents.std * noise).sample - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).mean()
    return error.abs().mean() + error.square().mean() + edges + kl_weight * kl


def psnr(vae: AutoencoderKL, images: UInt8[Tensor, "n 3 height width"], batch_size: int = 16) -> float:
    """Peak signal-to-noise ratio of reconstructions (from the latents' means) in dB, rounded to 8 bits."""
    total = 0.0
    with torch.no_grad():
        for part in images.split(batch_size):
            pixels = (part.float() / 127.5 - 1).to(vae.device)
            decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
            levels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().cpu()
            total += F.mse_loss(levels, part.float(), reduction="sum").item()
    return round(10 * math.log10(255**2 / max(total / images.numel(), 1e-10)), 2)


def _save(path: Path, vae: AutoencoderKL, optimizer: torch.optim.Optimizer, step: int) -> None:
    buffer = io.BytesIO()
    torch.save({"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, buffer)
    write_bytes(path, buffer.getvalue())


def _load(path: Path, vae: AutoencoderKL, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    vae.load_state_dict(state["vae"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
