"""Options of looking at a training: none of them changes what is trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from pixart_core.recipe.base import Source, Strict


def _several(value: Any) -> Any:
    """One name is a list of one: `report_to=csv`."""
    return [value] if isinstance(value, str) else value


# csv is ours and needs no package; the others are those of accelerate.
Tracker = Literal[
    "csv",
    "tensorboard",
    "wandb",
    "trackio",
    "mlflow",
    "comet_ml",
    "aim",
    "clearml",
    "dvclive",
    "swanlab",
]
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(_several)]


class ValidationOptions(Strict):
    """Loss on fixed noise, and pictures of fixed prompts, while a training runs."""

    every: PositiveInt = Field(1000, description="Updates between two validations; also at the end.")
    features: Source | None = Field(
        None, description="Feature store of images that are not trained on. Default: some that are."
    )
    samples: NonNegativeInt = Field(64, description="Images that the loss is taken of; 0: no loss.")
    bands: PositiveInt = Field(10, le=1000, description="Parts of the 1000 timesteps, a loss of each.")
    raw_weights: bool = Field(False, description="Also the loss of the weights before averaging (EMA).")
    prompts: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (), description="Draw a picture of each with the EMA weights."
    )
    images_every: PositiveInt | None = Field(
        None, description="Updates between two drawings; also at the end. Default: every."
    )
    images_per_prompt: PositiveInt = 1
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (), description="(height, width) in pixels, used in turn; default: the model's."
    )
    num_inference_steps: PositiveInt = 20
    guidance_scale: NonNegativeFloat = 4.5
    negative_prompt: str = ""
    scheduler: Literal["dpm-solver", "ddim"] = "dpm-solver"
    batch_size: PositiveInt = Field(8, description="Pictures drawn at once.")
    vae: Source | None = Field(None, description="Default: that of the features.")
    text_encoder: Source | None = Field(None, description="Default: that of the features.")
    seed: NonNegativeInt = Field(0, description="Of the loss's noise, and of the pictures.")

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if not self.samples and not self.prompts:
            raise ValueError("validation with samples 0 and no prompts does nothing: give one of them")
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("validation.prompts: a prompt is empty")
        return self


# Fields of `TrainStep` that no weight depends on.
WATCHING = frozenset({"validation", "report_to", "tracker_project_name", "page", "price"})
