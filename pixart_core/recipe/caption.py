"""Options of `pixart caption`."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pixart_core.recipe.base import Source
from pixart_core.recipe.data import DataOptions

Flag = Literal["failed", "empty", "truncated", "repeated", "refusal", "too_long"]
RetriedFlag = Literal["empty", "truncated", "repeated", "refusal"]
_API_BASE = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")


def _plain_address(value: str) -> str:
    # The message shows no address: it may hold a password.
    if "@" in value or "?" in value:
        raise ValueError("holds a user, password or query: put the key into the variable of api_key_env")
    if not _API_BASE.fullmatch(value):
        raise ValueError("write it like http://localhost:8000/v1")
    return value.rstrip("/")


class CaptionStep(DataOptions):
    """Describe images densely with a vision-language model (paper 2.4)."""

    command: Literal["caption"] = "caption"
    captioner: Source = Field(
        "llava-hf/llava-1.5-7b-hf",
        description="Hub id or path of an image-text-to-text model; with api_base, the server's name for it.",
    )
    prompt: str = "Describe this image and its style in a very detailed manner"
    with_original_caption: bool = Field(
        False, description="Put the original caption into the prompt (LAION)."
    )
    max_new_tokens: PositiveInt = 200
    max_image_side: PositiveInt | None = Field(
        None, description="Scale larger images down to this first; default: 1024 px for a server, else no."
    )
    batch_size: PositiveInt = 8
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="Weights in 8 or 4 bits (bitsandbytes, a GPU)."
    )
    device: str | None = None
    retry_flagged: NonNegativeInt = Field(
        0, description="Ask again this many times, with sampling, where a caption has one of retry_flags."
    )
    retry_flags: tuple[RetriedFlag, ...] = ("empty", "truncated", "repeated", "refusal")
    retry_temperature: PositiveFloat = 0.7
    exclude_flagged: tuple[Flag, ...] = Field(
        (), description="Later steps leave out images whose caption has one of these flags."
    )
    max_tokens: PositiveInt = Field(
        120,
        description="Captions with more tokens (of `tokenizer`, else T5's if it can be had) are too_long.",
    )
    seed: NonNegativeInt = 0
    api_base: Annotated[str, AfterValidator(_plain_address)] | None = Field(
        None, description="Ask an OpenAI-compatible server, e.g. http://localhost:8000/v1."
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the server's key."
    )
    api_image_format: Literal["jpeg", "png"] = "jpeg"
    api_extra: dict[str, Any] = Field(
        default_factory=dict, description="More fields of each request; null takes one of ours away."
    )
    api_retries: NonNegativeInt = Field(10, description="Tries after the first, waiting longer each time.")
    api_backoff: PositiveFloat = Field(1.0, description="Seconds before the first retry; then doubled.")
    api_timeout: PositiveFloat = Field(300.0, description="Seconds to wait for an answer.")
    concurrency: PositiveInt = Field(16, description="Requests under way at a time, of each process.")

    @model_validator(mode="after")
    def _a_server_computes_by_itself(self) -> Self:
        if self.api_base is not None and self.quantization is not None:
            raise ValueError("quantization is for models loaded here; with api_base the server decides")
        return self
