"""Options of `pixart sample`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from pixart_core.recipe.base import Fraction, Source, Strict
from pixart_core.recipe.prompts import AspectRatio, Text, check_one_size

Weights = Literal["transformer", "vae", "text_encoder", "uncond"]
Sampler = Literal["dpm-solver", "sa-solver", "iddpm", "ddim", "lcm"]
# Those of the paper and of the released code; LCM: of the released distilled weights.
DEFAULT_STEPS: dict[str, int] = {"dpm-solver": 20, "sa-solver": 25, "iddpm": 100, "ddim": 20, "lcm": 4}
DEFAULT_GUIDANCE = 4.5
# An LCM was distilled from guided predictions: guiding it again burns the colours.
LCM_GUIDANCE = 1.0
# LCM's steps are taken from those of the solver that it was distilled with.
MOST_STEPS, MOST_LCM_STEPS = 1000, 50


def default_steps(scheduler: str) -> int:
    """Solver steps where none are asked for."""
    return DEFAULT_STEPS[scheduler]


def default_guidance(scheduler: str) -> float:
    """Guidance scale where none is asked for."""
    return LCM_GUIDANCE if scheduler == "lcm" else DEFAULT_GUIDANCE


def _steps_of(data: dict[str, Any]) -> int:
    return default_steps(data.get("scheduler", "dpm-solver"))


def _guidance_of(data: dict[str, Any]) -> float:
    return default_guidance(data.get("scheduler", "dpm-solver"))


class SampleStep(Strict):
    """Generate images."""

    unrecorded: ClassVar[frozenset[str]] = frozenset({"processes", "weights", "offload"})

    command: Literal["sample"] = "sample"
    checkpoint: Source = Field(
        description="Pipeline folder, a checkpoint of `pixart train`, or a hub id such as "
        "PixArt-alpha/PixArt-XL-2-512x512, with @REVISION for another than the newest."
    )
    prompts: tuple[Text, ...] = ()
    prompts_file: Source | None = Field(
        None,
        description="Text file, JSONL or CSV (with seed, ar, height, width, negative_prompt, guidance_scale, "
        "num_inference_steps, images_per_prompt or id of each prompt), a folder of T2I-CompBench's "
        "{category}_val.txt, or a manifest whose held-out prompts are used.",
    )
    limit: PositiveInt | None = None
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (), description="(height, width) in pixels, used in turn; default: the checkpoint's."
    )
    ar: AspectRatio | None = Field(
        default=None, description="Shape as width:height, as in 9:16; drawn at the model's nearest size."
    )
    height: PositiveInt | None = Field(
        default=None, description="Pixels, with width; drawn at the model's nearest size unless any_size."
    )
    width: PositiveInt | None = None
    any_size: bool = Field(
        False, description="Allow sizes far from the resolution that the checkpoint was trained for."
    )
    scheduler: Sampler = Field(
        default="dpm-solver",
        description="iddpm: ancestral with the learned variance; lcm: only for weights distilled for it.",
    )
    num_inference_steps: PositiveInt = Field(
        default_factory=_steps_of,
        description="Default: dpm-solver 20, sa-solver 25, iddpm 100, ddim 20, lcm 4.",
    )
    guidance_scale: NonNegativeFloat = Field(
        default_factory=_guidance_of, description="Default: 4.5; lcm 1, which is none."
    )
    guidance_interval: tuple[Fraction, Fraction] | None = Field(
        default=None,
        description="[start, end]: guide only between these shares of the noise schedule, 0 being pure noise "
        "and 1 the picture; default: always.",
    )
    negative_prompt: Text = ""
    images_per_prompt: PositiveInt = 1
    batch_size: PositiveInt = 32
    dtype: Literal["fp32", "bf16"] = "fp32"
    device: str | None = None
    text_encoder_quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="Text encoder in 8 or 4 bits (pip install 'pixart[quant]'); changes the pictures.",
    )
    offload: Literal["none", "sequential"] = Field(
        default="none",
        description="sequential: layers of the text encoder are loaded one at a time, and the VAE only to "
        "decode; slower, same pictures.",
    )
    vae_tiling: bool = Field(
        default=False,
        description="Decode pictures larger than the VAE was trained on in tiles that overlap: less memory, "
        "slightly other pixels.",
    )
    processes: PositiveInt | None = Field(
        default=None,
        description="Processes that pixart starts for it on this machine; default: one a GPU, one on a CPU.",
    )
    weights: Mapping[Weights, str] = Field(
        default_factory=dict, description="Hashes that these weights must have, as an image tells them."
    )
    seed: NonNegativeInt = 0
    image_seeds: tuple[Annotated[NonNegativeInt, Field(lt=2**63)], ...] = Field(
        default=(), description="Seeds of the first images themselves; the others derive theirs from seed."
    )

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        check_steps(self.scheduler, self.num_inference_steps)
        check_one_size(self.ar, self.height, self.width)
        if self.sizes and (self.ar or self.height):
            raise ValueError("give either sizes or ar, height and width")
        if self.offload != "none" and self.text_encoder_quantization != "none":
            raise ValueError(
                "give either offload=sequential or text_encoder_quantization: a quantised encoder stays whole"
            )
        if self.guidance_interval and self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError("guidance_interval ends before it starts: give [start, end], as in [0.2, 0.8]")
        return self


def check_steps(scheduler: str, num_inference_steps: int) -> None:
    """Raises:
    ValueError: more steps than the sampler has timesteps to choose from."""
    most = MOST_LCM_STEPS if scheduler == "lcm" else MOST_STEPS
    if num_inference_steps > most:
        raise ValueError(f"num_inference_steps {num_inference_steps}: {scheduler} has at most {most}")
