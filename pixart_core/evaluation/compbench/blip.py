"""BLIP-VQA (Huang et al. 2023, T2I-CompBench 4.1): does the image show each noun phrase of its prompt?"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer, BlipForQuestionAnswering

from pixart_core.encoders.pretrained import weight_hash
from pixart_core.errors import PixartError

# bert-base-uncased with BLIP's [DEC] and [ENC] behind its last word.
START, ENCODE, YES, NO = 30522, 30523, 2748, 2053
MAX_TOKENS = 35
MAX_WORDS = 50
# Images that go through the vision model together: attention of 901 patches takes 80 MB an image and layer.
_SEEN = 8
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_MARKS = re.compile(r"[.!\"()*#:;~]")
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16}


class BlipVqa:
    """BLIP-VQA with the benchmark's preprocessing, in float32.

    Attributes:
        name: `blip480` for the image size; part of the protocol's id.
        weights: hash of the weights.
        official: whether this is the architecture and the image size of the benchmark.
    """

    def __init__(
        self, model: BlipForQuestionAnswering, tokenizer: BertTokenizer, device: torch.device, batch_size: int
    ) -> None:
        untyped: Any = model  # transformers' annotations know less than its classes
        vision = untyped.config.vision_config
        self.image_size: int = vision.image_size
        self.name = f"blip{self.image_size}"
        self.weights = weight_hash(model)
        self.official = self.image_size == 480 and all(
            getattr(vision, field) == value for field, value in _BASE.items()
        )
        self._model = untyped.to(device)
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size

    @torch.no_grad()
    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]
    ) -> list[tuple[float, ...]]:
        """P(yes) / (P(yes) + P(no)) of every question of every image, rounded to 4 places.

        Questions of one length go together: padded ones would be answered differently, because
        transformers hides no padding from the decoder.

        Raises:
            PixartError: an answer is no number.
        """
        assert len(images) == len(questions), "one list of questions an image"
        states = torch.cat(
            [self._look(images[start : start + _SEEN]) for start in range(0, len(images), _SEEN)]
        )
        asked = [(place, self._tokens(text)) for place, texts in enumerate(questions) for text in texts]
        answers = torch.empty(len(asked))
        order = sorted(range(len(asked)), key=lambda number: len(asked[number][1]))
        for _, group in itertools.groupby(order, key=lambda number: len(asked[number][1])):
            for batch in _cut(list(group), self._batch_size):
                tokens = torch.tensor([asked[number][1] for number in batch], device=self._device)
                owners = [asked[number][0] for number in batch]
                answers[batch] = self._yes(states[owners], tokens)
        if not answers.isfinite().all():
            raise PixartError(
                f"BLIP-VQA ({self.name}) answered with {answers.min().item()}: damaged weights?"
            )
        rounded = iter(float(f"{answer:.4f}") for answer in answers.tolist())
        return [tuple(itertools.islice(rounded, len(texts))) for texts in questions]

    def _look(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch patches width"]:
        pixels = torch.stack([self.pixels(image) for image in images])
        states: Tensor = self._model.vision_model(pixel_values=pixels.to(self._device)).last_hidden_state
        return states

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """Squeezed to a square with PIL's bicubic filter, normalised as CLIP's."""
        square = image.convert("RGB").resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(square)).permute(2, 0, 1).to(torch.float32).div(255)
        return values.sub(torch.tensor(_MEAN)[:, None, None]).div(torch.tensor(_STD)[:, None, None])

    def _tokens(self, question: str) -> list[int]:
        tokens: list[int] = self._tokenizer(question, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return [ENCODE, *tokens[1:]]

    def _yes(self, images: Float[Tensor, "batch patches width"], tokens: Tensor) -> Float[Tensor, " batch"]:
        question = self._model.text_encoder(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            encoder_hidden_states=images,
            encoder_attention_mask=torch.ones(images.shape[:-1], dtype=torch.long, device=self._device),
        ).last_hidden_state
        start = torch.full((len(tokens), 1), START, device=self._device)
        logits = self._model.text_decoder(
            input_ids=start,
            encoder_hidden_states=question,
            encoder_attention_mask=torch.ones_like(tokens),
        ).logits[:, 0]
        probabilities = logits.softmax(1)
        yes, no = probabilities[:, YES], probabilities[:, NO]
        return (yes / (yes + no)).float().cpu()


def question_of(phrase: str) -> str:
    """The question about a noun phrase, as the benchmark asks it."""
    words = _MARKS.sub("", f"{phrase}?".lower()).rstrip(" ").split(" ")
    return " ".join(words[:MAX_WORDS])


def product(answers: Sequence[float]) -> float:
    """An image's score: the product of its answers in float32, as the benchmark has it, to 4 places.

    An image without questions scores 1.
    """
    score = np.float32(1)
    for answer in answers:
        score *= np.float32(answer)
    return float(f"{score:.4f}")


def _cut(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
