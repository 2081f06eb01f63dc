"""Vision-language models that describe images, through transformers' image-text-to-text classes."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol, Self

import torch
from PIL import Image

from pixart_core.errors import PixartError, UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Captioner(Protocol):
    """Something that describes images."""

    def describe(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """One description an image; the same input gives the same words."""


@dataclasses.dataclass
class VisionLanguageModel:
    """A model and its processor; greedy decoding, so that captions can be made again."""

    model: Any
    processor: Any
    max_new_tokens: int

    @classmethod
    def load(
        cls, source: str, *, dtype: Literal["bf16", "fp16", "fp32"], device: torch.device, max_new_tokens: int
    ) -> Self:
        """Load a hub id or folder, e.g. llava-hf/llava-1.5-7b-hf. On a CPU always in fp32.

        Raises:
            UserError: it is not there, cannot be reached, or is no image-text-to-text model.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(source)
            model = AutoModelForImageTextToText.from_pretrained(
                source, dtype=torch.float32 if device.type == "cpu" else DTYPES[dtype]
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"captioner: {source} is not a folder or hub id of an image-text-to-text model ({reason})"
            ) from error
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or getattr(processor, "image_processor", None) is None:
            raise UserError(f"captioner: {source} has no processor for both images and text")
        tokenizer.padding_side = "left"  # generation goes on at the right end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(model.eval().to(device), processor, max_new_tokens)

    @torch.inference_mode()
    def describe(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """Generate a description of each RGB image after its prompt.

        Raises:
            PixartError: out of memory.
        """
        try:
            inputs = self.processor(
                images=[[image] for image in images],
                text=[self.format_prompt(prompt) for prompt in prompts],
                padding=True,
                return_tensors="pt",
            )
            inputs = inputs.to(self.model.device, self.model.dtype)  # the dtype of floating tensors only
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
        except torch.OutOfMemoryError as error:
            raise PixartError(
                f"out of memory with batch_size {len(images)}: lower it and run again, done captions are kept"
            ) from error
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def format_prompt(self, prompt: str) -> str:
        """What the model reads for one image: by its chat template, or image token and prompt."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        image_token = getattr(self.processor, "image_token", None)
        return prompt if image_token is None else f"{image_token}\n{prompt}"
