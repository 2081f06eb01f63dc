"""Inputs of `pixart run pixart_alpha` in miniature: pictures, prompts, a tiny model in each one's place."""

import json
from pathlib import Path

import numpy as np
import tiny_blip
import torch
from compbench_samples import PROMPTS, write_prompts
from diffusers import AutoencoderKL
from inception_weights import save_weights
from PIL import Image
from tiny_detectors import save_dpt, save_owlv2
from tiny_llava import save_tiny_llava
from tiny_vision import save_clip

from pixart_core.encoders.tiny_t5 import build_tiny_t5, build_tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
STAGES = ("stage1", "stage2", "stage3_256", "stage3_512", "stage3_1024")
# The 256, 512 and 1024 pixels of the paper.
SMALL, MIDDLE, LARGE = 32, 48, 64
LARGE_BUCKETS = ((64, 64), (80, 48))


def write_pictures(folder: Path, count: int, kind: str = "plain") -> Path:
    """Squares of three colours on white, tall and square pictures in turn; with labels or captions."""
    folder.mkdir()
    for number in range(count):
        name = list(COLOURS)[number % 3]
        pixels = np.full((96, (96, 64)[number % 2], 3), 255 - number, np.uint8)
        pixels[20:50, 10 + number : 40 + number] = COLOURS[name]
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        if kind == "labelled":
            (folder / f"{number:03d}.json").write_text(json.dumps({"label": number % 3}))
        if kind == "captioned":
            (folder / f"{number:03d}.txt").write_text(f"a {name} square on a white background")
    return folder


def write_inputs(root: Path) -> list[str]:
    """Make everything below `root`; the overrides that have the recipe use it."""
    vae, t5 = root / "vae", root / "t5"
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    autoencoder = AutoencoderKL(latent_channels=4, block_out_channels=(32,) * 4, layers_per_block=1, **kinds)
    autoencoder.save_pretrained(vae)
    tokenizer = build_tokenizer(["a red green blue square circle on a white background"])
    build_tiny_t5(len(tokenizer), width=16).save_pretrained(t5)
    tokenizer.save_pretrained(t5)
    prompts = root / "coco_prompts.txt"
    prompts.write_text("a red square\na green square\na blue circle\n")
    compbench = write_prompts(root / "compbench", {name: texts[:2] for name, texts in PROMPTS.items()})
    hq = write_pictures(root / "hq", 9, "captioned")
    sam = write_pictures(root / "sam", 9)
    values = {
        "features_imagenet": {"data": write_pictures(root / "imagenet", 9, "labelled"), "resolution": SMALL},
        "captions": {"data": sam, "captioner": save_tiny_llava(root / "llava"), "max_new_tokens": 6},
        "features_sam": {"data": sam, "resolution": SMALL},
        "features_hq": {"data": hq, "resolutions": [SMALL, MIDDLE]},
        "features_hq_1024": {"data": hq, "resolution": LARGE, "aspect_buckets": LARGE_BUCKETS},
        "stage1.model": {"size": None, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12,
                         "sample_size": SMALL // 8},
        "stage3_256": {"resolution": SMALL},
        "stage3_512": {"resolution": MIDDLE, "positions.sample_size": MIDDLE // 8},
        "stage3_1024": {"positions.sample_size": LARGE // 8},
        "samples_coco": {"prompts_file": prompts, "num_inference_steps": 2},
        "fid": {"reference": write_pictures(root / "coco", 3), "clip_model": save_clip(root / "clip"),
                "inception": save_weights(root / "inception.pth")},
        "samples_compbench": {"prompts_file": compbench, "images_per_prompt": 1, "num_inference_steps": 2},
        "compbench.compbench": {
            "prompts": compbench, "images_per_prompt": 1, "chunker": "textblob", "clip": root / "clip",
            "blip": tiny_blip.save_official(root / "blip.pth"),
            "blip_tokenizer": tiny_blip.save_tokenizer(root / "bert"),
            "detector_model": save_owlv2(root / "owlv2"), "depth": save_dpt(root / "dpt"),
        },
    }  # fmt: skip
    for name in ("features_imagenet", "features_sam", "features_hq", "features_hq_1024"):
        values[name] |= {"vae": vae, "text_encoder": t5}
    for name in STAGES:
        steps = {"max_train_steps": 2, "global_batch_size": 4, "micro_batch_size": 2, "lr_warmup_steps": 0}
        values[name] = values.get(name, {}) | steps
    return [
        f"{step}.{field}={json.dumps(value, default=str)}"
        for step, options in values.items()
        for field, value in options.items()
    ]
