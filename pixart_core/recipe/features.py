"""Options of `pixart extract-features`."""

from typing import Literal

from pydantic import Field, PositiveInt

from pixart_core.recipe.base import Source
from pixart_core.recipe.data import DataOptions


class ExtractFeaturesStep(DataOptions):
    """Encode images (VAE moments) and captions (text tokens) into a feature store."""

    command: Literal["extract-features"] = "extract-features"
    captions: Source | None = Field(
        None, description="Captions made by `pixart caption`; default: those of the data."
    )
    vae: Source = "stabilityai/sd-vae-ft-ema"
    text_encoder: Source = "google/t5-v1_1-xxl"
    resolution: PositiveInt = Field(512, description="Pixels; the square root of a bucket's area.")
    aspect_buckets: Literal["square", "paper"] | tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        "square", description="square, the paper's 40, or a list of [height, width]."
    )
    max_tokens: PositiveInt = 120
    storage: Literal["int8", "fp16", "fp32"] = "int8"
    batch_size: PositiveInt = 32
    shard_size: PositiveInt = Field(2048, description="Samples a shard.")
    dtype: Literal["bf16", "fp32"] = Field(
        "fp32", description="Compute type. fp16 overflows in T5, so it is not offered."
    )
    device: str | None = None
