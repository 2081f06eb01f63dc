"""Linear layers and attention of sampling, by the back end that is fastest on this kind of machine.

The choice depends on the processor, type and shape, never on a measurement: two runs give one result.
"""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixart_core.models.layers import attend

Activation: TypeAlias = Literal["none", "gelu"]

# Scores of a head above which a CPU takes head by head, and how many rows of them at once (`_by_head`).
_FEW_SCORES = 2**16
_ROWS = 512


def linear(
    x: Float[Tensor, "*b inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None,
    activation: Activation = "none",
) -> Float[Tensor, "*b outer"]:
    """`x @ weight.T + bias`, then tanh GELU if asked.

    torch gives float32 products on x86 to MKL, which uses half the width of an AMD processor's vectors;
    oneDNN uses all of it, and applies the activation while the values are in its registers.
    """
    if _has_onednn(x, weight):
        algorithm = "tanh" if activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    y = F.linear(x, weight, bias)
    return y if activation == "none" else F.gelu(y, approximate="tanh")


def apply(
    layer: nn.Module, x: Float[Tensor, "*b inner"], activation: Activation = "none"
) -> Float[Tensor, "*b outer"]:
    """`linear` with the weights of an `nn.Linear`."""
    assert isinstance(layer, nn.Linear)
    return linear(x, layer.weight, layer.bias, activation)


def _has_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if x.dtype == torch.bfloat16:  # the operator asked for directly has no fallback, as `F.linear` has
        return weight.dtype == x.dtype and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return x.dtype == weight.dtype == torch.float32


def attention(
    q: Float[Tensor, "b n d"],
    k: Float[Tensor, "b l d"],
    v: Float[Tensor, "b l d"],
    num_heads: int,
    bias: Float[Tensor, "b 1 1 l"] | None = None,
) -> Float[Tensor, "b n d"]:
    """Softmax attention of all heads; `bias` is added to the scores."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    many = q.shape[-2] * k.shape[-2] > _FEW_SCORES
    if many and bias is None and _has_onednn(q, k):
        return _by_head(q, k, v).flatten(2)
    if q.dtype == torch.bfloat16:
        return attend(q, k, v, bias).transpose(1, 2).flatten(2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def _by_head(
    q: Float[Tensor, "b heads n k"], k: Float[Tensor, "b heads l k"], v: Float[Tensor, "b heads l k"]
) -> Float[Tensor, "b n heads k"]:
    """Two products of oneDNN for each head: on a CPU half the time of torch's fused kernel.

    Scores are float32, as they are there.
    """
    batch, heads, count, width = q.shape
    q, k = q.float() * width**-0.5, k.float().contiguous()
    turned = v.mT.contiguous()
    out = torch.empty(batch, count, heads, width, dtype=v.dtype)
    for image in range(batch):
        for head in range(heads):
            for rows in torch.arange(count).split(_ROWS):
                some = slice(int(rows[0]), int(rows[-1]) + 1)
                weights = linear(q[image, head, some], k[image, head], None).softmax(-1).to(v.dtype)
                out[image, some, head] = linear(weights, turned[image, head], None)
    return out
