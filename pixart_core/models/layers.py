"""Attention, feed-forward, norm and patches: what a block and the final layer are made of."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixart_core.models.gelu import gelu_tanh


def modulation_table(rows: int, width: int) -> nn.Parameter:
    """Newly drawn shifts, scales and gates (rows, width), std 1/sqrt(width); no values on the meta device."""
    if torch.get_default_device().type == "meta":  # see `initialise`
        return nn.Parameter(torch.empty(rows, width))
    return nn.Parameter(torch.randn(rows, width) / width**0.5)


class Attention(nn.Module):
    """Multi-head attention of `x` to `context` (to itself when `context` is None)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        # A list of one, because diffusers' is (Linear, Dropout).
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b l d"] | None = None,
        bias: Float[Tensor, "b 1 1 l"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        context = x if context is None else context
        heads = (-1, self.num_heads, x.shape[-1] // self.num_heads)
        q = self.to_q(x).unflatten(-1, heads[1:]).transpose(1, 2)  # (b, heads, n, d / heads)
        k = self.to_k(context).unflatten(-1, heads[1:]).transpose(1, 2)
        v = self.to_v(context).unflatten(-1, heads[1:]).transpose(1, 2)
        return self.to_out[0](attend(q, k, v, bias).transpose(1, 2).flatten(2))


def attend(
    q: Float[Tensor, "b heads n k"],
    k: Float[Tensor, "b heads l k"],
    v: Float[Tensor, "b heads l k"],
    bias: Float[Tensor, "b 1 1 l"] | None,
) -> Float[Tensor, "b heads n k"]:
    """Softmax attention; `bias` is added to the scores.

    On a CPU, torch's fused kernel is several times slower backward than two matrix products while the
    scores are few (256 x 256 at most); everywhere else the fused kernels win.
    """
    if q.device.type == "cpu" and q.shape[-2] * k.shape[-2] <= 2**16:
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if (
            scores.shape[-1] % 32 and not torch.compiler.is_compiling()
        ):  # torch takes what does not fill a vector of bf16 one by one
            scores = scores.float()
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        return scores.softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


class Gelu(nn.Module):
    """Linear and tanh GELU, under the name that diffusers gives the pair."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return gelu_tanh(self.proj(x))


class FeedForward(nn.Module):
    """MLP with ratio 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.net[2](self.net[0](x))


def normalize(x: Float[Tensor, "b n d"], eps: float) -> Float[Tensor, "b n d"]:
    """LayerNorm without affine parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
) -> Float[Tensor, "b n d"]:
    """x * (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


def unpatchify(
    tokens: Float[Tensor, "b n ppc"], rows: int, columns: int, patch_size: int
) -> Float[Tensor, "b c h w"]:
    """Put patches back in place; a token holds (row in patch, column in patch, channel)."""
    p = patch_size
    grid = tokens.unflatten(-1, (p, p, -1)).unflatten(1, (rows, columns))  # (b, rows, columns, p, p, c)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, rows * p, columns * p)
