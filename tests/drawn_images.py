"""Images drawn with a tiny pipeline, for tests that draw them again."""

from pathlib import Path

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
