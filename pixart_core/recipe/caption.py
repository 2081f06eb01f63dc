"""Options of `pixart caption`."""

from typing import Literal

from pydantic import Field, PositiveInt

from pixart_core.recipe.base import Source
from pixart_core.recipe.data import DataOptions


class CaptionStep(DataOptions):
    """Describe images densely with a vision-language model (paper 2.4)."""

    command: Literal["caption"] = "caption"
    captioner: Source = Field(
        "llava-hf/llava-1.5-7b-hf", description="Hub id or path of an image-text-to-text model."
    )
    prompt: str = "Describe this image and its style in a very detailed manner"
    with_original_caption: bool = Field(
        False, description="Put the original caption into the prompt (LAION)."
    )
    max_new_tokens: PositiveInt = 200
    batch_size: PositiveInt = 8
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    device: str | None = None
