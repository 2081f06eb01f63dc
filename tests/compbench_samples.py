"""A small benchmark of our own prompts, and sample sets of noise for it."""

from pathlib import Path

import numpy as np
from PIL import Image

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.samples import SampleRecord, finish_samples, image_file, write_image
from pixart_core.evaluation.sample_set import SampleSet, read_sample_set

PROMPTS = {
    "color": ["a red chair and a blue door", "a green boat and a brown bear"],
    "shape": ["an oval plate and a square table", "a round coin and a long rope"],
    "texture": ["a wooden spoon and a glass bowl", "a metallic ring and a fluffy rug"],
    "spatial": ["a dog on the left of a chair", "a bowl on the top of a woman", "a cup near a cat"],
    "3d_spatial": ["a dog in front of a chair", "a cat behind a bowl"],
    "numeracy": ["three dogs", "two cats and a dog"],
    "non_spatial": ["A man is reading a book in a park.", "A dog is chasing a cat in the garden."],
    "complex": [
        "The red cup was on top of the wooden table.",
        "The fluffy cat slept on the soft blanket.",
        "The green bird sat next to the blue door.",
    ],
}


def write_prompts(folder: Path, prompts: dict[str, list[str]] = PROMPTS) -> Path:
    """With the official files' mixed line ends, blanks, empty lines and missing last line end."""
    folder.mkdir(parents=True, exist_ok=True)
    for category, texts in prompts.items():
        text = "\r\n".join(f"{prompt}  " for prompt in texts[:-1]) + "\n\n" + texts[-1]
        (folder / f"{category}_val.txt").write_bytes(text.encode())
    return folder


def write_samples(
    folder: Path, prompts: dict[str, list[str]] = PROMPTS, images_per_prompt: int = 2, side: int = 24
) -> SampleSet:
    """Noise for every prompt, as `pixart sample` leaves it."""
    records = []
    for texts in prompts.values():
        for prompt in texts:
            for _ in range(images_per_prompt):
                number = len(records)
                record = SampleRecord(f"{number:06d}", image_file(number), prompt, number, side, side)
                write_image(folder, record, noise(number, side), {})
                records.append(record)
    finish_samples(folder, records, Card("samples", {"command": "sample"}, {}))
    return read_sample_set(folder.name, folder)


def noise(seed: int, side: int = 24) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
