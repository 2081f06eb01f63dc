"""Options of `--dry-run`: the hardware to plan for, and what is assumed. No result depends on them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pixart_core.recipe.base import Strict
from pixart_core.recipe.gpus import GpuName


def _plain_name(value: Any) -> Any:
    """`rtx 4090` and `RTX-4090` are RTX4090."""
    return value.upper().replace(" ", "").replace("-", "") if isinstance(value, str) else value


Gpu = Annotated[GpuName, BeforeValidator(_plain_name)]


class PublishedCost(Strict):
    """GPU-days that somebody reported for a step."""

    gpu: Gpu
    gpu_days: PositiveFloat


class StepPlan(Strict):
    """What a train step will find, where that cannot be read yet; and what it is reported to have cost."""

    images: PositiveInt | None = Field(None, description="Images in its features.")
    aspect_buckets: Literal["square", "paper"] | tuple[tuple[PositiveInt, PositiveInt], ...] | None = Field(
        None, description="Sizes of its features' pictures, as in extract-features."
    )
    published: PublishedCost | None = None


class PlanOptions(Strict):
    """Hardware and assumptions of `--dry-run`."""

    gpu: Gpu = "A100"
    gpus: PositiveInt = Field(1, description="How many work together.")
    mfu: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="Share of the peak FLOP/s that the model's own FLOPs get."
    )
    price: NonNegativeFloat | None = Field(None, description="USD per GPU-hour; default: of the table.")
    kg_co2_per_kwh: NonNegativeFloat = Field(0.48, description="Carbon intensity of the grid.")
    overhead: Annotated[float, Field(ge=1)] = Field(
        1.2, description="Energy of the whole site for that of the GPUs at full power (PUE)."
    )
    steps: dict[str, StepPlan] = Field(default_factory=dict, description="By the name of the train step.")
