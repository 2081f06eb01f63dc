"""Vision-language models that describe images, through transformers' image-text-to-text classes."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Self

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from pixart_core.encoders.caption_rows import Description
from pixart_core.encoders.pretrained import locate, quiet, refuse_missing
from pixart_core.encoders.quantised import quantised_arguments
from pixart_core.errors import PixartError, UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Quantization = Literal["8bit", "4bit"]


@dataclasses.dataclass
class VisionLanguageModel:
    """A model and its processor."""

    model: Any
    processor: Any
    max_new_tokens: int
    say: Callable[[str], None] = print

    @classmethod
    def load(
        cls,
        source: str,
        *,
        dtype: Literal["bf16", "fp16", "fp32"],
        device: torch.device,
        max_new_tokens: int,
        quantization: Quantization | None = None,
        say: Callable[[str], None] = print,
    ) -> Self:
        """Load a hub id or folder, e.g. llava-hf/llava-1.5-7b-hf. On a CPU always in fp32.

        Raises:
            UserError: it is not there, cannot be reached, is damaged or is no image-text-to-text model.
        """
        from transformers import AutoModelForImageTextToText

        processor = load_processor(source)
        options: dict[str, Any] = {"dtype": torch.float32 if device.type == "cpu" else DTYPES[dtype]}
        if quantization is not None:
            _check_quantization(quantization, device)
            options |= quantised_arguments(quantization, device, options["dtype"])
        with _loading(source):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                **locate(source, "captioner"), **options, output_loading_info=True
            )
            model, info = loaded
            refuse_missing(source, "captioner", list(info["missing_keys"]))
        if quantization is None:
            model = model.to(device)
        return cls(model.eval(), processor, max_new_tokens, say)

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        """The tensors of a batch, on the CPU: may be made in another thread than `generate`."""
        return self.processor(
            images=[[image] for image in images],
            text=[self.format_prompt(prompt) for prompt in prompts],
            padding=True,
            return_tensors="pt",
        )

    @torch.inference_mode()
    def generate(
        self, inputs: Any, seeds: Sequence[int] | None = None, temperature: float = 1.0
    ) -> list[Description]:
        """Describe each image of a prepared batch, with the likeliest token each time.

        Args:
            seeds: one an image: draw tokens instead, each image from its own numbers.

        Raises:
            torch.OutOfMemoryError: the batch is too large.
        """
        inputs = inputs.to(self.model.device, self.model.dtype)  # the dtype of floating tensors only
        sampling = [] if seeds is None else [SeededSampling(seeds, temperature)]
        tokens = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList(sampling),
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        given = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        new = tokens[:, given:].cpu()
        texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [
            Description(text.strip(), cut=self._ran_into_the_limit(row))
            for text, row in zip(texts, new, strict=True)
        ]

    def describe(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        temperature: float = 1.0,
        inputs: Any = None,
    ) -> list[Description]:
        """`generate` for images; a batch that does not fit into the memory is halved until it does.

        Args:
            inputs: what `prepare` made of them, if it is done.

        Raises:
            PixartError: not even one image fits.
        """
        try:
            inputs = self.prepare(images, prompts) if inputs is None else inputs
            return self.generate(inputs, seeds, temperature)
        except torch.OutOfMemoryError as error:
            if len(images) == 1:
                raise PixartError(
                    f"out of memory with a single image of {images[0].width}x{images[0].height} px: set "
                    "max_image_side, quantization or a smaller max_new_tokens; done captions are kept"
                ) from error
        torch.cuda.empty_cache()  # after the exception, which holds the tensors
        middle = (len(images) + 1) // 2
        self.say(f"out of memory with {len(images)} images: going on with {middle}; lower batch_size")
        described = []
        for part in (slice(0, middle), slice(middle, None)):
            chosen = None if seeds is None else seeds[part]
            described += self.describe(images[part], prompts[part], chosen, temperature)
        return described

    def format_prompt(self, prompt: str) -> str:
        """What the model reads for one image: by its chat template, else as LLaVA does."""
        if has_chat_template(self.processor):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        image_token = getattr(self.processor, "image_token", None)
        if image_token is None or self._marks_images_itself:
            return prompt  # BLIP and its like go on from what they are given
        return f"USER: {image_token}\n{prompt} ASSISTANT:"

    @functools.cached_property
    def _marks_images_itself(self) -> bool:
        """Whether the processor puts the image's tokens before a text that does not mention it."""
        token = self.processor.tokenizer.convert_tokens_to_ids(str(self.processor.image_token))
        try:
            inputs = self.processor(images=[[Image.new("RGB", (32, 32))]], text=["a"], return_tensors="pt")
        except (ValueError, RuntimeError, IndexError, TypeError):  # more images than places for them
            return False
        return bool((inputs["input_ids"] == token).any())

    def _ran_into_the_limit(self, tokens: Tensor) -> bool:
        ends = self.model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends or []
        return len(tokens) >= self.max_new_tokens and not torch.isin(tokens, torch.tensor(ends)).any()


class SeededSampling(LogitsProcessor):
    """Turns the likeliest token into a drawn one: argmax(logits / T + Gumbel noise) ~ softmax(logits / T).

    Each row draws from a generator of its own on the CPU, so that neither the batch nor the device decides
    what an image gets.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` (b, vocabulary) with the noise of this step."""
        noise = torch.stack(
            [-torch.empty(scores.shape[1]).exponential_(generator=one).log() for one in self._generators]
        )
        return scores.float() / self._temperature + noise.to(scores.device)


def load_processor(source: str) -> Any:
    """The processor of a captioner, padding on the left, where generation does not go on.

    Raises:
        UserError: it is not there, or is not for both images and text.
    """
    from transformers import AutoProcessor

    place = locate(source, "captioner")
    with _loading(source):
        processor = AutoProcessor.from_pretrained(**place)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise UserError(f"captioner: {source} has no processor for both images and text")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def has_chat_template(processor: Any) -> bool:
    """Whether the model says itself how a question is put to it."""
    return bool(getattr(processor, "chat_template", None))


def prompt_lengths(processor: Any, prompts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens that the model reads for each prompt and image of (height, width) px, to group likes.

    Where a processor does not tell how many tokens an image has, all images count alike.
    """
    distinct = list(dict.fromkeys(prompts))
    ids = processor.tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
    length = {prompt: len(tokens) for prompt, tokens in zip(distinct, ids, strict=True)}
    image = _image_tokens(processor, set(sizes))
    return [length[prompt] + image[size] for prompt, size in zip(prompts, sizes, strict=True)]


def _image_tokens(processor: Any, sizes: set[tuple[int, int]]) -> Mapping[tuple[int, int], int]:
    ordered = sorted(sizes)
    try:  # transformers gives this name to servers, without promising to keep it
        counts = processor._get_num_multimodal_tokens(image_sizes=[list(size) for size in ordered])
        return dict(zip(ordered, counts["num_image_tokens"], strict=True))
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
        return dict.fromkeys(ordered, 0)


def _check_quantization(kind: Quantization, device: torch.device) -> None:
    if device.type != "cuda":
        raise UserError(f"quantization {kind} needs a GPU; this is {device.type}")
    if find_spec("bitsandbytes") is None:
        raise UserError(f"quantization {kind} needs bitsandbytes: pip install 'pixart[quant]'")


@contextlib.contextmanager
def _loading(source: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises into an error of ours."""
    quiet()
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise PixartError(f"{source} does not fit into the memory: try quantization=4bit") from error
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:300]
        if find_spec("torchvision") is None and ("torchvision" in reason or "video" in reason.lower()):
            # Processors that take videos too exist only with torchvision.
            raise UserError(f"captioner: {source} needs torchvision: pip install torchvision") from error
        raise UserError(
            f"captioner: {source} cannot be loaded as an image-text-to-text model ({reason})"
        ) from error
