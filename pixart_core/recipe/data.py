"""Options of reading images, and of the generated data set."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from pixart_core.recipe.base import Fraction, Source, Strict


class ShapesStep(Strict):
    """Generate a data set of coloured shapes with dense captions and exact ground truth."""

    command: Literal["shapes"] = "shapes"
    count: PositiveInt = Field(20_000, description="Training images.")
    heldout: PositiveInt = Field(300, description="Held-out prompts (scenes never trained on), with images.")
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        ((64, 64),), min_length=1, description="(height, width) of the pictures in pixels, used in turn."
    )
    seed: NonNegativeInt = 0


class DataOptions(Strict):
    """Which images are read, shared by `caption`, `extract-features` and the encoders."""

    data: Source = Field(description="Folder, WebDataset tars, hf:ID[/split], or a manifest.")
    limit: PositiveInt | None = Field(None, description="Read at most this many images.")
    heldout_fraction: Fraction = Field(0.0, description="Share of the images kept out of training.")
    heldout_keys: tuple[str, ...] = Field(
        (), description="JSON fields whose combination is held out together, e.g. [concept, style]."
    )
    label_key: str | None = Field(None, description="JSON field that is the class label of stage 1.")
    max_bad_fraction: Fraction = Field(0.05, description="Stop when more images than this are unusable.")
