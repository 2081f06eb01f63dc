"""Cross-attention to captions that stay the same over all steps: what of it can be computed beforehand.

A block's attention to a caption y is softmax(x Wq (y Wk)^T) y Wv Wo: all but x is known before the first
step. `Cached` keeps y Wk and y Wv; `Folded` also multiplies Wq and Wo in, head by head, less work for short
captions; a caption of one token takes all the attention whatever x is, so it is `Constant`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixart_core.models.embeddings import padding_bias
from pixart_core.models.layers import Attention
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.kernels import apply, attention, linear
from pixart_core.sampling.model import pad_tokens

# Folding pays up to this share of the width in heads * tokens.
_SHORT = 0.75
# Of a batch: XL in float32 folds 13 captions of 20 tokens, and keeps keys and values of 69 of 120.
_FOLDED_BYTES, _CACHED_BYTES = 2**30, 2**31


class PreparedText(Protocol):
    """The captions of `count` images in a row, ready for the cross-attention of every block."""

    count: int

    def add(self, x: Float[Tensor, "count n d"], block: int) -> Float[Tensor, "count n d"]:
        """x + the attention of x to the captions in block number `block`."""
        ...


@dataclasses.dataclass
class Constant:
    """Captions of one token: a vector (d,) for each block, whatever the image."""

    count: int
    vectors: list[Float[Tensor, " d"]]

    def add(self, x: Tensor, block: int) -> Tensor:
        return x + self.vectors[block]


@dataclasses.dataclass
class FoldedBlock:
    """Keys with Wq, values with Wo; token by token, within a token head by head."""

    keys: Float[Tensor, "l*heads d"]
    key_bias: Float[Tensor, " l*heads"]
    values: Float[Tensor, "d l*heads"]
    bias: Float[Tensor, " d"]


@dataclasses.dataclass
class Folded:
    """One short caption, of all the images."""

    count: int
    num_heads: int
    blocks: list[FoldedBlock]

    def add(self, x: Tensor, block: int) -> Tensor:
        folded = self.blocks[block]
        scores = linear(x, folded.keys, folded.key_bias).unflatten(-1, (-1, self.num_heads))
        # Over the tokens, which are not the last axis: the processor's vectors then hold heads, and are full.
        weights = scores.softmax(dim=-2, dtype=torch.float32).to(x.dtype).flatten(-2)
        return x + linear(weights, folded.values, folded.bias)


@dataclasses.dataclass
class Cached:
    """A caption for each image, or one for all; padded to one length."""

    count: int
    attentions: list[Attention]
    keys: list[Float[Tensor, "count l d"]]
    values: list[Float[Tensor, "count l d"]]
    bias: Float[Tensor, "count 1 1 l"] | None

    def add(self, x: Tensor, block: int) -> Tensor:
        return x + _attend(self.attentions[block], x, self.keys[block], self.values[block], self.bias)


@dataclasses.dataclass
class Projected:
    """As `Cached`, of captions whose keys and values would take too much memory."""

    count: int
    attentions: list[Attention]
    text: Float[Tensor, "count l d"]
    bias: Float[Tensor, "count 1 1 l"] | None

    def add(self, x: Tensor, block: int) -> Tensor:
        layers = self.attentions[block]
        keys, values = apply(layers.to_k, self.text), apply(layers.to_v, self.text)
        return x + _attend(layers, x, keys, values, self.bias)


def _attend(layers: Attention, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    keys, values = (y.expand(len(x), -1, -1) for y in (keys, values))
    return apply(layers.to_out[0], attention(apply(layers.to_q, x), keys, values, layers.num_heads, bias))


def prepare_text(
    transformer: PixArtTransformer,
    captions: Sequence[Float[Tensor, "l caption"]],
    *,
    padded: bool | None = None,
) -> list[PreparedText]:
    """The captions of images that come in this order, on the device and in the type of `transformer`.

    Args:
        padded: take different captions together, padded to one length. A CPU takes caption by caption, and
            neighbours with the same one together; elsewhere many small products would take longer than a few
            padded ones, and that decides where nothing is said.
    """
    weight = transformer.pos_embed.proj.weight
    if padded is None:
        padded = weight.device.type != "cpu"
    captions = [caption.to(weight.device, weight.dtype) for caption in captions]
    runs = _runs(captions)
    if padded and len(runs) > 1:
        text, mask = pad_tokens(captions)
        bias = padding_bias(mask.to(text.device), text.dtype)
        return [_kept(transformer, transformer.caption_projection(text), bias, len(captions), _CACHED_BYTES)]
    folded, cached = 0 if padded else _FOLDED_BYTES, _CACHED_BYTES
    prepared: list[PreparedText] = []
    for caption, count in runs:
        text = transformer.caption_projection(caption)
        size = _folded_bytes(transformer, len(text))
        if len(text) == 1:
            prepared.append(_constant(transformer, text, count))
        elif size <= folded and _is_short(transformer, len(text)):
            prepared.append(_folded(transformer, text, count))
            folded -= size
        else:
            prepared.append(_kept(transformer, text[None], None, count, cached))
            cached -= _cached_bytes(transformer, text)
    return prepared


def _runs(captions: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    """Captions and how many times each comes in a row."""
    runs: list[tuple[Tensor, int]] = []
    for caption in captions:
        if runs and torch.equal(runs[-1][0], caption):
            runs[-1] = (caption, runs[-1][1] + 1)
        else:
            runs.append((caption, 1))
    return runs


def _is_short(transformer: PixArtTransformer, tokens: int) -> bool:
    """Whether folding is less work: for each of x 2 heads * l products of d numbers instead of 2 d + 2 l."""
    config = transformer.config
    return tokens * config.num_attention_heads <= _SHORT * config.width


def _folded_bytes(transformer: PixArtTransformer, tokens: int) -> int:
    config = transformer.config
    item = transformer.pos_embed.proj.weight.element_size()
    return 2 * config.num_layers * tokens * config.num_attention_heads * config.width * item


def _cached_bytes(transformer: PixArtTransformer, text: Tensor) -> int:
    return 2 * transformer.config.num_layers * text.nbytes


def _attentions(transformer: PixArtTransformer) -> list[Attention]:
    return [block.attn2 for block in transformer.transformer_blocks]  # type: ignore[misc]


def _constant(transformer: PixArtTransformer, text: Float[Tensor, "1 d"], count: int) -> Constant:
    layers = _attentions(transformer)
    return Constant(count, [apply(a.to_out[0], apply(a.to_v, text))[0] for a in layers])


def _folded(transformer: PixArtTransformer, text: Float[Tensor, "l d"], count: int) -> Folded:
    layers = _attentions(transformer)
    return Folded(count, layers[0].num_heads, [_fold(attention, text) for attention in layers])


def _fold(layers: Attention, text: Float[Tensor, "l d"]) -> FoldedBlock:
    """In float32, and rounded once."""
    by_head = (layers.num_heads, -1)
    keys = apply(layers.to_k, text).float().unflatten(-1, by_head)  # (l, heads, k)
    values = apply(layers.to_v, text).float().unflatten(-1, by_head)
    keys = keys * keys.shape[-1] ** -0.5
    query, query_bias = layers.to_q.weight.float(), layers.to_q.bias.float()
    out: nn.Linear = layers.to_out[0]  # type: ignore[assignment]
    with torch.autocast(text.device.type, enabled=False):
        folded_keys = torch.einsum("lhk,hkd->lhd", keys, query.unflatten(0, by_head))
        key_bias = torch.einsum("lhk,hk->lh", keys, query_bias.unflatten(0, by_head))
        folded_values = torch.einsum("lhk,dhk->dlh", values, out.weight.float().unflatten(1, by_head))
    return FoldedBlock(
        keys=folded_keys.flatten(0, 1).to(text.dtype),
        key_bias=key_bias.flatten().to(text.dtype),
        values=folded_values.flatten(1).to(text.dtype),
        bias=out.bias,
    )


def _kept(
    transformer: PixArtTransformer,
    text: Float[Tensor, "b l d"],
    bias: Float[Tensor, "b 1 1 l"] | None,
    count: int,
    room: int,
) -> PreparedText:
    """Keys and values if they take no more than `room` bytes."""
    layers = _attentions(transformer)
    if _cached_bytes(transformer, text) > room:
        return Projected(count, layers, text, bias)
    keys, values = [apply(a.to_k, text) for a in layers], [apply(a.to_v, text) for a in layers]
    return Cached(count, layers, keys, values, bias)
