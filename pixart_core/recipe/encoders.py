"""Options of encoders that are built on the spot."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pixart_core.recipe.base import Source, Strict
from pixart_core.recipe.data import DataOptions


class AnalyticVae(Strict):
    """An `AutoencoderKL` with set, not learned, weights: 2x2 mean down, bilinear up."""

    kind: Literal["analytic"] = "analytic"
    downsamplings: NonNegativeInt = Field(1, le=3)


class TrainedVae(Strict):
    """A small `AutoencoderKL` trained on the data itself; for experiments without a download."""

    kind: Literal["trained"] = "trained"
    block_out_channels: tuple[PositiveInt, ...] = (32, 64, 64)
    latent_channels: PositiveInt = 4
    image_size: PositiveInt = 64
    train_steps: PositiveInt = 2000
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1.0e-3
    kl_weight: NonNegativeFloat = 1.0e-6


class TinyT5(Strict):
    """A frozen, randomly initialised T5 encoder with a word-level tokenizer of the captions."""

    kind: Literal["tiny-t5"] = "tiny-t5"
    width: PositiveInt = 64
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4


class EncodersStep(DataOptions):
    """Build small encoders on the spot, saved in the normal Hugging Face layout."""

    command: Literal["encoders"] = "encoders"
    captions: Source | None = Field(
        None, description="Captions made by `pixart caption`; default: those of the data."
    )
    vae: Annotated[AnalyticVae | TrainedVae, Field(discriminator="kind")] | None = None
    text_encoder: TinyT5 | None = None
    device: str | None = Field(None, description="Where a VAE is trained; default: a GPU if there is one.")
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _something_to_build(self) -> Self:
        if self.vae is None and self.text_encoder is None:
            raise ValueError("give vae, text_encoder, or both")
        return self
