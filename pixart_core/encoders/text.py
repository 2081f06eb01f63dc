"""The text encoder: T5, or any other text model of transformers, by hub id or folder."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModel,
    MT5EncoderModel,
    T5EncoderModel,
    UMT5EncoderModel,
)

from pixart_core.encoders.offload import letting_go, offload_sequentially
from pixart_core.encoders.pretrained import loading, locate, refuse_missing, short_name, weight_hash
from pixart_core.encoders.quantised import Quantization, check_quantization, quantised_arguments
from pixart_core.errors import UserError

_ENCODERS: dict[str, Any] = {
    "clip": CLIPTextModel,
    "clip_text_model": CLIPTextModel,
    "mt5": MT5EncoderModel,
    "t5": T5EncoderModel,
    "umt5": UMT5EncoderModel,
}


@dataclasses.dataclass(frozen=True)
class TextBatch:
    """Some of many texts, of similar length.

    Attributes:
        numbers: which of the texts they are.
        ids: the tokens of each.
    """

    numbers: Sequence[int]
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]


@dataclasses.dataclass
class TextEncoder:
    """A frozen text model and its tokenizer.

    Attributes:
        name: hub id, or the folder's last name.
        hash: of the weights as they were stored.
        channels: width of a token's state.
        revision: commit on the hub, None for a folder.
        offloaded_to: where the layers compute, if their weights lie elsewhere (`offload_sequentially`).
    """

    model: Any
    tokenizer: Any
    name: str
    hash: str
    channels: int
    revision: str | None = None
    offloaded_to: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.offloaded_to or self.model.device

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], max_tokens: int = 120
    ) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        """Last hidden states (float32, zero at padding) and the mask of valid tokens.

        Texts are stripped of surrounding blanks, nothing else. l is the longest text here, at most
        `max_tokens`; longer texts are cut. The empty text has at least one valid token.
        """
        tokens = self._tokenize(texts, max_tokens)
        padded = self.tokenizer.pad(tokens, padding="longest", return_tensors="pt").to(self.device)
        mask = padded["attention_mask"].bool()
        hidden = self.model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])[0]
        return hidden.float() * mask.unsqueeze(-1), mask

    def encode_each(
        self, texts: Sequence[str], max_tokens: int = 120, batch_size: int = 32
    ) -> list[Float[Tensor, "l d"]]:
        """The valid states of each text, float32 on the CPU.

        Raises:
            UserError: the model computes values that are not finite; names the text.
        """
        states: list[Tensor] = [torch.empty(0)] * len(texts)
        for batch in self.batches(texts, max_tokens, batch_size):
            for number, row in zip(batch.numbers, self.encode_batch(batch), strict=True):
                states[number] = row
        return states

    def batches(self, texts: Sequence[str], max_tokens: int = 120, batch_size: int = 32) -> list[TextBatch]:
        """The texts in batches of similar length, the short ones first.

        Which texts share a batch depends on `texts` and `batch_size` alone.
        """
        ids = self._tokenize(texts, max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda number: len(ids[number]))
        cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        return [TextBatch(some, [texts[n] for n in some], [ids[n] for n in some]) for some in cut]

    def encode_batch(self, batch: TextBatch) -> list[Float[Tensor, "l d"]]:
        """The valid states of each text of a batch, float32 on the CPU.

        Raises:
            UserError: the model computes values that are not finite; names the text.
        """
        states = self._encode_ids(batch.ids)
        for text, state in zip(batch.texts, states, strict=True):
            if not state.sum().isfinite() and not state.isfinite().all():
                raise self._not_finite(text)
        return states

    def _not_finite(self, text: str) -> UserError:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return UserError(
            f"text encoder {self.name} computes values that are not finite in {dtype} for the caption "
            f"{shorten(text.strip(), 80)!r}; use another dtype or encoder"
        )

    @torch.no_grad()
    def _encode_ids(self, ids: Sequence[Sequence[int]]) -> list[Float[Tensor, "l d"]]:
        """One batch of token numbers."""
        lengths = torch.tensor([len(row) for row in ids])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = torch.full(mask.shape, int(self.tokenizer.pad_token_id))
        padded[mask] = torch.tensor([number for row in ids for number in row])
        device = self.device
        hidden = self.model(input_ids=padded.to(device), attention_mask=mask.to(device, torch.long))[0]
        return [states[: len(row)] for states, row in zip(hidden.float().cpu(), ids, strict=True)]

    def describe(self) -> dict[str, Any]:
        """What the card of a feature store says of its text encoder."""
        return {
            "name": self.name,
            "revision": self.revision,
            "hash": self.hash,
            "channels": self.channels,
        }

    def _tokenize(self, texts: Sequence[str], max_tokens: int) -> Any:
        limit = min(max_tokens, self.tokenizer.model_max_length)
        stripped = [text.strip() for text in texts]
        return self.tokenizer(stripped, add_special_tokens=True, truncation=True, max_length=limit)


def load_text_encoder(
    source: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    quantization: Quantization = "none",
    offload: Literal["none", "sequential"] = "none",
) -> TextEncoder:
    """Load a text encoder with its tokenizer.

    Args:
        source: hub id or folder, holding both model and tokenizer or `text_encoder/` and `tokenizer/`.
        dtype: float32 or bfloat16; T5 overflows in float16.
        quantization: of the linear layers, by bitsandbytes.
        offload: sequential: weights stay in their file and come to `device` layer by layer. Same states.

    Raises:
        UserError: it is not there, is no text model, lacks weights, or its tokenizer gives the empty
            caption no token; or bitsandbytes is asked for and not installed.
    """
    assert dtype != torch.float16
    assert "none" in (quantization, offload)
    check_quantization(quantization)
    place = locate(source, "text_encoder")
    with loading(source, "text_encoder"):
        config = AutoConfig.from_pretrained(**place)
        model_class = _ENCODERS.get(config.model_type, AutoModel)
        model, info = model_class.from_pretrained(**place, dtype="auto", output_loading_info=True)
        tokenizer = _load_tokenizer(place)
    # A pooling layer that the files lack is drawn at random, and not used here.
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    refuse_missing(source, "text_encoder", missing)
    _prepare_tokenizer(source, tokenizer)
    digest = weight_hash(model, untouched=True)
    if quantization != "none":
        del model, info
        with loading(source, "text_encoder"), letting_go(place):
            arguments = quantised_arguments(quantization, torch.device(device), dtype)
            model = model_class.from_pretrained(**place, **arguments)
    if config.is_encoder_decoder and hasattr(model, "get_decoder"):
        model = model.get_encoder()
    channels = getattr(config, "d_model", None) or getattr(model.config, "hidden_size", None)
    if channels is None:
        raise UserError(f"{source}: {type(model).__name__} is no text model")
    model = model.eval().requires_grad_(False)
    encoder = TextEncoder(model, tokenizer, short_name(source), digest, int(channels), place.get("revision"))
    if offload == "sequential":
        offload_sequentially(model, device, dtype)
        encoder.offloaded_to = torch.device(device)
    elif quantization == "none":
        _move(model, place, torch.device(device), dtype)
    return encoder


def _move(model: Any, place: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    """Copy the weights where they must be copied, without all of their files in memory beside the copies."""
    copied = (model.device, model.dtype) != (device, dtype)
    with letting_go(place) if copied else contextlib.nullcontext():
        model.to(device=device, dtype=dtype)


def _load_tokenizer(place: dict[str, Any]) -> Any:
    """The tokenizer beside the model, or in the folder `tokenizer` next to it."""
    if "subfolder" in place:
        return AutoTokenizer.from_pretrained(**place | {"subfolder": "tokenizer"})
    folder = Path(place["pretrained_model_name_or_path"])
    if folder.name == "text_encoder" and (folder.parent / "tokenizer").is_dir():
        return AutoTokenizer.from_pretrained(folder.parent / "tokenizer")
    return AutoTokenizer.from_pretrained(**place)


def _prepare_tokenizer(source: str, tokenizer: Any) -> None:
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if not tokenizer("").input_ids:
        raise UserError(
            f"{source}: its tokenizer gives the empty caption no token; choose an encoder whose tokenizer "
            "marks the end of a text"
        )
