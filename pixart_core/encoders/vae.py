"""The autoencoder: any diffusers `AutoencoderKL`, by hub id or folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from pixart_core.encoders.pretrained import loading, locate, refuse_missing, short_name, weight_hash
from pixart_core.errors import UserError


def load_vae(
    source: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> AutoencoderKL:
    """Load an `AutoencoderKL` for inference.

    Args:
        source: hub id, folder of a VAE, or folder with a `vae/` in it.
        dtype: float32 or bfloat16; Stable Diffusion's VAE overflows in float16.

    Raises:
        UserError: it is not there, is another class, or lacks weights.
    """
    vae, _ = _load(source)
    return _placed(vae, device, dtype)


def load_described_vae(
    source: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[AutoencoderKL, dict[str, Any]]:
    """`load_vae`, and what cards say of it: see `describe_vae`. The hash does not depend on `dtype`."""
    vae, revision = _load(source)
    described = describe_vae(vae, source, revision)
    return _placed(vae, device, dtype), described


def _load(source: str) -> tuple[AutoencoderKL, str | None]:
    """The VAE in float32 on the CPU, and its commit on the hub."""
    place = locate(source, "vae")
    _refuse_other_class(source, place)
    with loading(source, "vae"):
        vae, info = AutoencoderKL.from_pretrained(**place, output_loading_info=True)
    refuse_missing(source, "vae", info["missing_keys"])
    return vae.eval().requires_grad_(False), place.get("revision")


def _placed(vae: Any, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKL:
    assert dtype != torch.float16
    vae = vae.to(device)
    return vae if vae.dtype == dtype else vae.to(dtype)


def _refuse_other_class(source: str, place: Mapping[str, Any]) -> None:
    config = Path(place["pretrained_model_name_or_path"]) / "config.json"
    if config.is_file():
        try:
            name = json.loads(config.read_text()).get("_class_name", "no diffusers model")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{config} is damaged: {error}") from error
        if name != "AutoencoderKL":
            raise UserError(f"{source}: expected a vae of class AutoencoderKL, found {name}")


def vae_downsampling(vae: AutoencoderKL) -> int:
    """Pixels per latent pixel, along a side."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def read_vae_downsampling(source: str) -> int:
    """`vae_downsampling` of a VAE whose weights are not loaded.

    Raises:
        UserError: it is not there, or another class.
    """
    place = locate(source, "vae")
    _refuse_other_class(source, place)
    with loading(source, "vae"):
        return 2 ** (len(AutoencoderKL.load_config(**place)["block_out_channels"]) - 1)


def describe_vae(vae: AutoencoderKL, source: str, revision: str | None = None) -> dict[str, Any]:
    """What a card says of a VAE: name, commit on the hub (None for a folder), hash, scaling and sizes."""
    return {
        "name": short_name(source),
        "revision": revision,
        "hash": weight_hash(vae),
        "latent_channels": int(vae.config["latent_channels"]),
        "downsampling": vae_downsampling(vae),
        "scaling_factor": float(vae.config["scaling_factor"]),
        "shift_factor": float(vae.config.get("shift_factor") or 0.0),
    }


@torch.no_grad()
def encode_moments(
    vae: AutoencoderKL, pixels: Float[Tensor, "b 3 height width"], batch_size: int = 32
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Mean and standard deviation of the latents of `pixels` in [-1, 1]; unscaled, float32, on the CPU."""
    means, stds = [], []
    for part in pixels.split(batch_size):
        latents = vae.encode(part.to(device=vae.device, dtype=vae.dtype)).latent_dist
        means.append(latents.mean.float().cpu())
        stds.append(latents.std.float().cpu())
    if len(means) == 1:
        return means[0], stds[0]
    return torch.cat(means), torch.cat(stds)
