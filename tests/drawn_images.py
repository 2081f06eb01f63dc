"""Images drawn with a tiny pipeline, for tests that draw them again, and the pixels of a sample set."""

from pathlib import Path

import numpy as np
from PIL import Image

from pixart_core.artifacts.samples import read_samples
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.sample import run_sampling


def sample(pipeline: Path, output: Path, **changes: object) -> Path:
    """Draw three images below `output`; the second of them."""
    options = {
        "checkpoint": str(pipeline),
        "prompts": ("a red circle", "two blue squares", "röd <b>"),
        "num_inference_steps": 4,
        "negative_prompt": "blue",
        "seed": 7,
    }
    run_sampling(SampleStep(**(options | changes)), output, Silent())
    return output / "images/000001.png"


def pixels(folder: Path) -> list[np.ndarray]:
    """The images of a sample set, (height, width, 3), as integers whose differences do not overflow."""
    return [np.asarray(Image.open(folder / record.file)).astype(int) for record in read_samples(folder)]
