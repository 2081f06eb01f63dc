"""Options of `pixart extract-features`: encoding, and bringing features in from other formats."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pixart_core.errors import UserError
from pixart_core.recipe.base import Fraction, Source, Strict
from pixart_core.recipe.buckets import bucket_table
from pixart_core.recipe.data import DataOptions

Storage = Literal["int8", "fp16", "fp32"]
ComputeType = Literal["bf16", "fp32"]
ExportFormat = Literal["webdataset", "hf"]
DEFAULT_RESOLUTION = 512


class ExtractFeaturesStep(DataOptions):
    """Encode images (VAE moments) and captions (text tokens) into a feature store."""

    command: Literal["extract-features"] = "extract-features"
    captions: Source | None = Field(
        None, description="Captions made by `pixart caption`; default: those of the data."
    )
    vae: Source = "stabilityai/sd-vae-ft-ema"
    text_encoder: Source = "google/t5-v1_1-xxl"
    split: Literal["train", "heldout"] = Field(
        "train", description="heldout: the images kept out of training, to validate on."
    )
    # No part of what is made: the store is the same whether both parts are made at once or one by one.
    only: Literal["image", "text"] | None = Field(
        None, exclude=True, description="Make this part alone; the store is complete when both are there."
    )
    resolution: PositiveInt | None = Field(
        None, description="Pixels; the square root of a bucket's area. Default: 512."
    )
    resolutions: tuple[PositiveInt, ...] | None = Field(
        None, min_length=1, description="Several at once, instead of `resolution`; text is stored once."
    )
    aspect_buckets: Literal["square", "paper"] | tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        "square",
        description="square, the paper's 40, or a list of [height, width] (for the first of several "
        "resolutions; scaled for the others).",
    )
    horizontal_flip: bool = Field(False, description="Store the moments of the mirrored pictures as well.")
    max_tokens: PositiveInt = 120
    storage: Storage = "int8"
    batch_size: PositiveInt = 32
    shard_size: PositiveInt = Field(2048, description="Samples a shard.")
    dtype: ComputeType = Field(
        "fp32", description="Compute type. fp16 overflows in T5, so it is not offered."
    )
    vae_dtype: ComputeType | None = Field(None, description="Compute type of the VAE; default: dtype.")
    text_encoder_dtype: ComputeType | None = Field(
        None, description="Compute type of the text encoder; default: dtype."
    )
    device: str | None = Field(None, description="Default: the best there is, a GPU for each process.")

    @model_validator(mode="after")
    def _resolutions_are_clear(self) -> Self:
        if self.resolution is not None and self.resolutions is not None:
            raise ValueError("give resolution or resolutions, not both")
        if len(set(self.all_resolutions)) < len(self.all_resolutions):
            raise ValueError("resolutions: one is given twice")
        try:
            for resolution in self.all_resolutions:
                bucket_table(self.aspect_buckets, resolution)
        except UserError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def all_resolutions(self) -> tuple[int, ...]:
        """The resolutions that are made, as the user ordered them."""
        return self.resolutions or (self.resolution or DEFAULT_RESOLUTION,)


class ImportFeaturesStep(Strict):
    """Options of `pixart extract-features --import`.

    What the features were made with is read from an export's card; for other data it is said here.
    """

    command: Literal["extract-features --import"] = "extract-features --import"
    source: Source = Field(
        description="Folder of WebDataset archives, of a Hugging Face data set, or in PixArt's own layout."
    )
    storage: Storage | None = Field(None, description="Default: as in the export; int8 for other data.")
    shard_size: PositiveInt | None = Field(
        None, description="Samples a shard. Default: as in the export; 2048 for other data."
    )
    max_bad_fraction: Fraction = Field(
        0.0, description="Stop when more samples than this are missing or damaged."
    )
    resolution: PositiveInt | None = Field(
        None, description="Pixels; for data that do not tell. Default: from the sizes of the latents."
    )
    vae: Source = Field(
        "stabilityai/sd-vae-ft-ema", description="For data that do not tell: what made the moments."
    )
    text_encoder: Source | None = Field(
        None,
        description="For data that do not tell: what made the tokens; encodes the empty caption. Without it "
        "models are trained with uncond: learned.",
    )
    list_file: str | None = Field(None, description="PixArt's layout: the list. Default: partition/*.json.")
    vae_features: str | None = Field(None, description="PixArt's layout: folder of the .npy files.")
    text_features: str | None = Field(None, description="PixArt's layout: folder of the .npz files.")
    device: str | None = None
