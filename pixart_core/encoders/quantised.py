"""A text encoder in 8 or 4 bits by bitsandbytes: a half or a quarter of bf16's memory, and other numbers."""

import logging
from importlib.util import find_spec
from typing import Any, Literal

import torch

from pixart_core.errors import UserError

Quantization = Literal["none", "8bit", "4bit"]


def check_quantization(kind: Quantization) -> None:
    """Raises:
    UserError: bitsandbytes is not installed."""
    if kind != "none" and find_spec("bitsandbytes") is None:
        raise UserError(
            f"text_encoder_quantization {kind} needs bitsandbytes: pip install 'pixart[quant]' (or "
            "offload=sequential, which needs no more memory and changes nothing)"
        )


def quantised_arguments(kind: Quantization, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained`: LLM.int8 (Dettmers et al., 2022), or NF4 (QLoRA, 2023).

    T5's `wo` stays as it is in both: transformers knows that its inputs leave float16's range.
    """
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    # It tells at every layer that inputs become float16, and that a kernel for CPUs is not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return {"quantization_config": config, "device_map": {"": device}, "dtype": dtype}
