"""`pixart encoders`: small encoders built on the spot, saved as `vae/`, `text_encoder/`, `tokenizer/`.

Details in the card: vae (see `describe_vae`; with psnr in dB and psnr_images), text_encoder (hash,
channels, vocabulary).
"""

import dataclasses
import os
import random
import shutil
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from jaxtyping import UInt8
from torch import Tensor

from pixart_core.artifacts.captions import read_captions
from pixart_core.artifacts.card import card_for, read_card
from pixart_core.artifacts.manifest import ImageRecord, Manifest
from pixart_core.artifacts.publish import staged_folder
from pixart_core.data.images import ImageReader, resize_and_crop
from pixart_core.data.scan import manifest_for
from pixart_core.encoders.analytic_vae import build_analytic_vae
from pixart_core.encoders.device import choose_device
from pixart_core.encoders.pretrained import quiet, weight_hash
from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer
from pixart_core.encoders.trained_vae import VaeTraining, psnr, train_vae
from pixart_core.encoders.vae import describe_vae, encode_moments
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.encoders import AnalyticVae, EncodersStep, TinyT5, TrainedVae
from pixart_core.seeding import derive_seed

_SCALE_IMAGES = 512  # for measuring the scaling factor
_PSNR_IMAGES = 256
_MAX_SIDE = 256  # of pictures that an analytic VAE is measured on
_TRAINING_BYTES = 512 * 2**20  # images held in memory while a VAE is trained


def run_encoders(step: EncodersStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Build the encoders that `step` asks for into `output`.

    A killed run comes again and loses at most a minute of training the VAE. The scan of the data is kept
    in `output/manifest`.

    Returns:
        output, vae and text_encoder (the card's details, of what was built).

    Raises:
        UserError: the data cannot be used, or has no captions for a text encoder.
        PixartError: the disk is full, or training diverges.
    """
    card = card_for("encoders", step, {})
    found = read_card(output)
    if found is not None and found["fingerprint"] == card.fingerprint:
        return {"output": str(output), **found["details"]}
    if found is not None:
        raise UserError(
            f"{output} holds {found['kind']} made with other options or data; choose another output"
        )
    manifest = manifest_for(step, output / "manifest", progress)
    details: dict[str, Any] = {}
    if step.text_encoder is not None:
        captions = _captions(step, manifest)
        details["text_encoder"] = _build_text_encoder(step.text_encoder, captions, step.seed, output)
    if step.vae is not None:
        details["vae"] = _build_vae(step, manifest, output, card.fingerprint, progress)
    dataclasses.replace(card, details=details).write(output)
    shutil.rmtree(output / "training", ignore_errors=True)
    return {"output": str(output), **details}


def _captions(step: EncodersStep, manifest: Manifest) -> list[str]:
    """All captions, held-out ones too: a vocabulary teaches nothing."""
    if step.captions is not None:
        captions = [row.caption for row in read_captions(str(step.captions)).values()]
    else:
        captions = [record.caption for record in manifest.records if record.caption]
    if not captions:
        raise UserError(f"{step.data}: no image has a caption to build a tokenizer from; caption it first")
    return captions


def _build_text_encoder(options: TinyT5, captions: Sequence[str], seed: int, output: Path) -> dict[str, Any]:
    if options.width % options.num_heads:
        raise UserError(
            f"text_encoder: width {options.width} is not a multiple of num_heads {options.num_heads}"
        )
    tokenizer = build_tokenizer(captions)
    model = build_tiny_t5(
        len(tokenizer), options.width, options.num_layers, options.num_heads, derive_seed(seed, "tiny-t5")
    )
    quiet()
    with staged_folder(output / "text_encoder") as folder:
        model.save_pretrained(folder)
    with staged_folder(output / "tokenizer") as folder:
        tokenizer.save_pretrained(folder)
    return {"hash": weight_hash(model), "channels": options.width, "vocabulary": len(tokenizer)}


def _build_vae(
    step: EncodersStep, manifest: Manifest, output: Path, plan: str, progress: Progress
) -> dict[str, Any]:
    assert step.vae is not None
    train, heldout = manifest.split("train"), manifest.split("heldout")
    if not train:
        raise UserError(f"{step.data}: no images are left for training (all are held out)")
    size = _image_size(step.vae, train)
    images = _Images(manifest, size, step.seed)
    if isinstance(step.vae, AnalyticVae):
        vae = build_analytic_vae(step.vae.downsamplings)
    else:
        options = VaeTraining(**step.vae.model_dump(exclude={"kind"}), seed=step.seed)
        pixels = images.sample(train, max(1, _TRAINING_BYTES // (3 * size * size)), "train")
        # Named by what is made, so that a checkpoint of other options is never continued.
        checkpoint = output / "training" / f"vae-{plan}.pt"
        vae = train_vae(options, pixels, checkpoint, progress, choose_device(step.device))
    vae.register_to_config(scaling_factor=_scaling_factor(vae, images.sample(train, _SCALE_IMAGES, "scale")))
    quality = psnr(vae, images.sample(heldout or train, _PSNR_IMAGES, "psnr"))
    with staged_folder(output / "vae") as folder:
        vae.cpu().save_pretrained(folder)
    split = "held-out" if heldout else "training"
    progress.say(
        f"vae: scaling factor {vae.config['scaling_factor']}, reconstructs {split} images to {quality} dB"
    )
    described = describe_vae(vae, "vae")
    return {key: value for key, value in described.items() if key != "name"} | {
        "psnr": quality,
        "psnr_images": split,
    }


def _image_size(options: AnalyticVae | TrainedVae, records: Sequence[ImageRecord]) -> int:
    """Side of the square pictures that a VAE is trained or measured on."""
    if isinstance(options, TrainedVae):
        factor = 2 ** (len(options.block_out_channels) - 1)
        if options.image_size % factor:
            raise UserError(f"vae: image_size {options.image_size} is not a multiple of {factor}")
        return options.image_size
    factor = 2**options.downsamplings
    side = statistics.median_low(min(record.height, record.width) for record in records)
    return max(factor, min(side, _MAX_SIDE) // factor * factor)


@dataclasses.dataclass
class _Images:
    """Random pictures of a manifest, cut to one size."""

    manifest: Manifest
    size: int
    seed: int

    def sample(self, records: Sequence[ImageRecord], limit: int, purpose: str) -> UInt8[Tensor, "n 3 s s"]:
        if len(records) > limit:
            rows = range(len(records))
            chosen = random.Random(derive_seed(self.seed, "vae", purpose)).sample(rows, limit)
            records = [records[row] for row in sorted(chosen)]
        reader = ImageReader(self.manifest.folder)

        def read(record: ImageRecord) -> np.ndarray:
            return np.asarray(resize_and_crop(reader.read(record), self.size, self.size))

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            pixels = np.stack(list(pool.map(read, records)))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _scaling_factor(vae: AutoencoderKL, images: UInt8[Tensor, "n 3 s s"]) -> float:
    """1 / standard deviation of the latents as training draws them."""
    mean, std = encode_moments(vae, images.float() / 127.5 - 1)
    deviation = (mean.var(correction=0) + std.square().mean()).sqrt()
    return float(f"{1 / max(deviation.item(), 1e-6):.4g}")
