"""Options of a transformer to initialise, or to bring to another resolution."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pixart_core.recipe.base import Strict
from pixart_core.sizes import SIZES, SizeName


class ModelOptions(Strict):
    """A transformer to initialise; names as in diffusers. XL/2 is the default."""

    size: SizeName | None = Field(
        None, description="Named size of DiT: sets num_layers, num_attention_heads, attention_head_dim."
    )
    conditioning: Literal["text", "class"] = "text"
    modulation: Literal["adaln_single", "adaln"] | None = Field(
        None,
        description="adaln_single (the paper; default for text) or an MLP per block, adaln (DiT; default "
        "for class).",
    )
    num_layers: PositiveInt = 28
    num_attention_heads: PositiveInt = 16
    attention_head_dim: PositiveInt = 72
    patch_size: PositiveInt = 2
    sample_size: PositiveInt = Field(32, description="Side of the training latents.")
    interpolation_scale: PositiveFloat = 1.0
    use_additional_conditions: bool = Field(
        False, description="Resolution and aspect-ratio embeddings (MS variant)."
    )
    learned_variance: bool = True

    @model_validator(mode="before")
    @classmethod
    def _size_sets_the_shape(cls, data: Any) -> Any:
        size = data.get("size") if isinstance(data, dict) else None
        shape = SIZES.get(size) if isinstance(size, str) else None
        return data if shape is None else shape._asdict() | data

    @model_validator(mode="after")
    def _shape_is_that_of_its_size(self) -> Self:
        for field, value in SIZES[self.size]._asdict().items() if self.size else ():
            if getattr(self, field) != value:
                raise ValueError(
                    f"size {self.size} has {field} {value}, not {getattr(self, field)}: leave one of both out"
                )
        return self


class Positions(Strict):
    """Change the resolution that a checkpoint is trained for (paper 2.2, stage 3)."""

    sample_size: PositiveInt
    interpolation_scale: PositiveFloat = 1.0
    use_additional_conditions: bool | None = Field(None, description="None: as in the checkpoint.")
