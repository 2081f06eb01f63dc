"""One pydantic model a command: the only place where options and their defaults live.

A recipe holds the same models as its steps, so a flag and a recipe key can never drift apart.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pixart_core.recipe.base import FromStep, Source, Strict
from pixart_core.recipe.caption import CaptionStep
from pixart_core.recipe.data import ShapesStep
from pixart_core.recipe.encoders import EncodersStep
from pixart_core.recipe.evaluate import EvaluateStep
from pixart_core.recipe.features import ExtractFeaturesStep
from pixart_core.recipe.planning import PlanOptions
from pixart_core.recipe.sample import SampleStep as SampleStep
from pixart_core.recipe.training import Positions, TrainStep


class ConvertStep(Strict):
    """Turn one model format into another; DiT to PixArt is the paper's re-parameterisation."""

    command: Literal["convert"] = "convert"
    source: Source = Field(description="File or folder to convert.")
    to: Literal["pixart", "dit", "diffusers", "official"] = Field(
        description="pixart: a checkpoint of ours, a DiT is re-parameterised; dit: a DiT as it is; "
        "diffusers: a pipeline or a DiT's folder; official: a .pth, or a DiT's .pt."
    )
    timestep: NonNegativeInt = Field(500, le=999, description="Where DiT and PixArt agree (paper 2.3).")
    class_condition: Literal["null", "none"] = Field(
        "null", description="c in E(i): the null class (seen in training) or nothing (the paper's words)."
    )
    shared_mlp: Literal["mean", "first", "zero", "random"] = "mean"
    modulation: Literal["adaln_single", "adaln"] = Field(
        "adaln_single",
        description="adaln keeps an MLP per block, as the DiT has (ablation): equal at every timestep.",
    )
    resolution: Literal[256, 512, 1024] | None = Field(
        None, description="Position embedding and micro-conditions of the released model of this resolution."
    )
    positions: Positions | None = Field(None, description="The same for any other resolution.")
    max_shard_size: str = Field(
        "10GB", pattern=r"^[1-9][0-9]*(MB|GB)$", description="Weights larger than this become several files."
    )
    dit_definition: Literal["auto", "original", "diffusers"] = Field(
        "auto",
        description="Timestep embedding that a diffusers DiT was trained with; auto: original if all blocks "
        "hold copies of one embedder.",
    )
    caption_channels: PositiveInt | None = Field(
        None, description="Width of the text encoder's tokens; default: read from it, else T5-XXL's 4096."
    )
    vae: Source | None = Field(None, description="With `to: diffusers`: the VAE of the pipeline.")
    text_encoder: Source | None = Field(
        None, description="With `to: diffusers`: the text encoder of the pipeline."
    )
    weights: Literal["ema", "model", "base"] = Field(
        "ema", description="Which weights of a file that has several; base: a ControlNet's base model."
    )
    sample_size: PositiveInt | None = Field(None, description="Latent side; for files that do not tell.")
    interpolation_scale: PositiveFloat | None = Field(
        None, description="Position scale; for files that do not tell."
    )
    num_attention_heads: PositiveInt | None = Field(None, description="For widths other than S, B, L, XL.")
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_resolution(self) -> Self:
        if self.resolution is not None and self.positions is not None:
            raise ValueError("give either resolution (of the released weights) or positions (any other)")
        return self


Step = Annotated[
    ShapesStep
    | EncodersStep
    | CaptionStep
    | ExtractFeaturesStep
    | TrainStep
    | ConvertStep
    | SampleStep
    | EvaluateStep,
    Field(discriminator="command"),
]

# Each step gets a folder of its name; names that begin with a dot are the chain's own.
StepName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Recipe(Strict):
    """A chain of named steps; `{step: NAME}` refers to the output of an earlier one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: str | None = Field(None, description="Folder that gets one sub-folder a step; default runs/NAME.")
    plan: PlanOptions = PlanOptions.model_validate({})
    needs: dict[str, str] = Field(
        default_factory=dict,
        description="Inputs that no step makes: path and the command that makes it, or where it comes from.",
    )
    steps: dict[StepName, Step] = Field(min_length=1)

    @model_validator(mode="after")
    def _plans_are_of_train_steps(self) -> Self:
        trained = [name for name, step in self.steps.items() if isinstance(step, TrainStep)]
        for name in self.plan.steps:
            if name not in trained:
                raise ValueError(
                    f"plan.steps: no train step {name!r}; there are: {', '.join(trained) or 'none'}"
                )
        return self

    @model_validator(mode="after")
    def _steps_refer_backwards(self) -> Self:
        seen: set[str] = set()
        for name, step in self.steps.items():
            for field, target in step_references(step):
                if target not in seen:
                    known = ", ".join(sorted(seen)) or "none"
                    raise ValueError(
                        f"{name}.{field} refers to step {target!r}, which is not an earlier step ({known})"
                    )
            seen.add(name)
        return self


def step_references(step: BaseModel) -> list[tuple[str, str]]:
    """(dotted field, step name) of every `{step: NAME}` in `step`."""
    found: list[tuple[str, str]] = []

    def visit(path: str, value: Any) -> None:
        if isinstance(value, FromStep):
            found.append((path, value.step))
        elif isinstance(value, BaseModel):
            for field in type(value).model_fields:
                visit(f"{path}.{field}".lstrip("."), getattr(value, field))
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(f"{path}.{key}", item)

    visit("", step)
    return found


def source_fields(model: type[BaseModel]) -> list[str]:
    """Names of the fields of a step that hold sources (inputs), a dict of sources included."""
    return [name for name, field in model.model_fields.items() if _mentions_from_step(field.annotation)]


def _mentions_from_step(annotation: Any) -> bool:
    return annotation is FromStep or any(_mentions_from_step(inner) for inner in get_args(annotation))
