"""Cross-attention to captions that stay the same over all steps: what of it can be computed beforehand.

A block's attention to a caption y is softmax(x Wq (y Wk)^T) y Wv Wo: all but x is known before the first
step. `Cached` keeps y Wk and y Wv; `Folded` also multiplies Wq and Wo in, head by head, less work for short
captions; a caption of one token takes all the attention whatever x is, so it is `Constant`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixart_core.models.embeddings import padding_bias
from pixart_core.models.layers import Attention
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.sampling.kernels import apply, attention, linear
from pixart_core.sampling.model import pad_tokens

# Folding pays up to this share of the width in heads * tokens; and is done up to so many bytes a batch.
_SHORT = 0.75
_FOLDED_BYTES = 2**30


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
        layers, keys, values = self.attentions[block], self.keys[block], self.values[block]
        keys, values = (y.expand(self.count, -1, -1) for y in (keys, values))
        heads = layers.num_heads
        return x + apply(layers.to_out[0], attention(apply(layers.to_q, x), keys, values, heads, self.bias))


def prepare_text(
    transformer: PixArtTransformer, captions: Sequence[Float[Tensor, "l caption"]]
) -> list[PreparedText]:
    """The captions of images that come in this order, on the device and in the type of `transformer`.

    A CPU takes caption by caption, without padding, and neighbours with the same one together. Elsewhere many
    small products would take longer than a few padded ones.
    """
    weight = transformer.pos_embed.proj.weight
    captions = [caption.to(weight.device, weight.dtype) for caption in captions]
    runs = _runs(captions)
    if weight.device.type != "cpu" and len(runs) > 1:
        padded, mask = pad_tokens(captions)
        return [_cached(transformer, transformer.caption_projection(padded), mask, count=len(captions))]
    room = _FOLDED_BYTES
    prepared: list[PreparedText] = []
    for caption, count in runs:
        text = transformer.caption_projection(caption)
        size = _folded_bytes(transformer, len(text))
        if len(text) == 1:
            prepared.append(_constant(transformer, text, count))
        elif weight.device.type == "cpu" and size <= room and _is_short(transformer, len(text)):
            prepared.append(_folded(transformer, text, count))
            room -= size
        else:
            prepared.append(_cached(transformer, text[None], None, count=count))
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
    return FoldedBlock(
        keys=torch.einsum("lhk,hkd->lhd", keys, query.unflatten(0, by_head)).flatten(0, 1).to(text.dtype),
        key_bias=torch.einsum("lhk,hk->lh", keys, query_bias.unflatten(0, by_head)).flatten().to(text.dtype),
        values=torch.einsum("lhk,dhk->dlh", values, out.weight.float().unflatten(1, by_head))
        .flatten(1)
        .to(text.dtype),
        bias=out.bias,
    )


def _cached(
    transformer: PixArtTransformer,
    text: Float[Tensor, "b l d"],
    mask: Bool[Tensor, "b l"] | None,
    *,
    count: int,
) -> Cached:
    layers = _attentions(transformer)
    return Cached(
        count,
        layers,
        [apply(a.to_k, text) for a in layers],
        [apply(a.to_v, text) for a in layers],
        None if mask is None else padding_bias(mask.to(text.device), text.dtype),
    )
