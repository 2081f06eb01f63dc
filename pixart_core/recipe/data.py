"""Options of reading images, and of the generated data set."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

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


Range = Annotated[tuple[NonNegativeInt, PositiveInt | None], Field(description="[least, most]; null: any.")]


class Filters(Strict):
    """Which of the usable images are kept; everything but `aspect` is off by default."""

    min_size: PositiveInt | None = Field(None, description="Pixels of the shorter side, at least.")
    aspect: tuple[PositiveFloat, PositiveFloat] | None = Field(
        (0.1, 10.0), description="Width divided by height: [least, most]; null: any."
    )
    caption_words: Range | None = Field(None, description="Words of the caption: [least, most or null].")
    caption_characters: Range | None = Field(
        None, description="Characters of the caption: [least, most or null]."
    )
    max_tokens: PositiveInt = Field(120, description="With `tokenizer`: tokens that the text encoder reads.")
    truncated: Literal["keep", "drop"] = Field(
        "keep", description="Images whose caption is longer than max_tokens; kept ones are flagged."
    )
    max_truncated_fraction: Fraction = Field(
        1.0, description="Stop when a larger share of the captions is longer than max_tokens."
    )
    exact_duplicates: Literal["bytes", "pixels"] | None = Field(
        None, description="Keep the first of images with the same file or the same pixels."
    )
    near_duplicates: NonNegativeInt | None = Field(
        None,
        le=11,
        description="Keep the first of images whose perceptual hashes differ in at most so many of 64 bits.",
    )
    leakage_distance: NonNegativeInt = Field(
        4, le=11, description="With images in `exclude`: bits of 64 within which an image is one of them."
    )

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> Self:
        for name in ("aspect", "caption_words", "caption_characters"):
            low, high = getattr(self, name) or (0, None)
            if high is not None and low > high:
                raise ValueError(f"{name}: {low} is more than {high}, so nothing would be kept")
        return self


class DataOptions(Strict):
    """Which images are read, shared by `caption`, `extract-features` and the encoders."""

    data: Source = Field(description="Folder, WebDataset tars, parquet files, hf:ID[/split], or a manifest.")
    streaming: bool = Field(
        False, description="Read hf:ID/split as far as needed; what was read is kept beside the manifest."
    )
    limit: PositiveInt | None = Field(None, description="Read at most this many images.")
    heldout_fraction: Fraction = Field(0.0, description="Share of the images kept out of training.")
    heldout_keys: tuple[str, ...] = Field(
        (), description="JSON fields whose combination is held out together, e.g. [concept, style]."
    )
    label_key: str | None = Field(None, description="JSON field that is the class label of stage 1.")
    max_bad_fraction: Fraction = Field(0.05, description="Stop when more images than this are unusable.")
    filters: Filters = Filters.model_validate({})
    tokenizer: Source | None = Field(
        None, description="Text encoder whose tokens of the data's captions are counted (filters.max_tokens)."
    )
    exclude: Source | None = Field(
        None,
        description="Never to be trained on: a file of captions, ids or SHA-256 sums, or benchmark images.",
    )
