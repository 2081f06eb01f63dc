"""Numbers in 8 bits: blocks of 256 that share a scale, and a code that is finer near zero.

Block-wise dynamic quantisation of Dettmers et al. (2022), "8-bit Optimizers via Block-wise Quantization".
"""

import dataclasses
import functools

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256
_GOLDEN, _PLASTIC = 0.6180339887498949, 0.7548776662466927  # their multiples fill [0, 1) evenly


@dataclasses.dataclass(frozen=True)
class Quantised:
    """`codes` are places in a table of 256 values in [-1, 1] or [0, 1]; `scale` is each block's largest."""

    codes: UInt8[Tensor, "blocks 256"]
    scale: Float[Tensor, "blocks 1"]


def zeros(parameter: Tensor) -> Quantised:
    """As many zeros as `parameter` has elements."""
    blocks = -(-parameter.numel() // BLOCK)
    device = parameter.device
    return Quantised(
        torch.zeros(blocks, BLOCK, dtype=torch.uint8, device=device), torch.zeros(blocks, 1, device=device)
    )


def in_blocks(values: Tensor) -> Float[Tensor, "blocks 256"]:
    """Flattened, in float32, filled up with zeros."""
    flat = values.detach().float().flatten()
    return F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def dequantise(stored: Quantised, *, signed: bool) -> Float[Tensor, "blocks 256"]:
    """The numbers that are stored."""
    return table(signed, stored.scale.device)[stored.codes.int()] * stored.scale


def quantise_signed(values: Float[Tensor, "blocks 256"]) -> Quantised:
    """Round each to the nearest value of its block's table."""
    scale = values.abs().amax(dim=1, keepdim=True)
    entries = table(True, values.device)
    middles = (entries[1:] + entries[:-1]) / 2
    return Quantised(torch.bucketize(_relative(values, scale), middles, out_int32=True).byte(), scale)


def quantise_positive(values: Float[Tensor, "blocks 256"], time: int) -> Quantised:
    """Round each up or down, in turns that are right on average over `time`; nothing positive becomes 0.

    A mean that moves by a thousandth at a step never leaves its place if it is rounded to the nearest: after
    the gradients have changed it would stay wrong for good. And a divisor of 0 would be a huge update.
    """
    scale = values.amax(dim=1, keepdim=True)
    entries = table(False, values.device)
    relative = _relative(values, scale)
    below = (torch.bucketize(relative, entries, out_int32=True, right=True) - 1).clamp_(0, len(entries) - 2)
    share = (relative - entries[below]) / (entries[below + 1] - entries[below])
    up = share > (_turns(values.device) + time * _GOLDEN % 1.0) % 1.0
    return Quantised((below + up).clamp_(min=1).byte(), scale)


def _relative(values: Tensor, scale: Tensor) -> Tensor:
    return values / scale.clamp(min=torch.finfo(torch.float32).tiny)


@functools.cache
def table(signed: bool, device: torch.device) -> Float[Tensor, "256"]:
    """The dynamic data type, sorted: seven decades, each with twice as many values as the one below."""
    values = [0.0, 1.0]
    for exponent in range(7):
        count = 2**exponent if signed else 2 ** (exponent + 1)
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (exponent - 6)).tolist()
        values += [*middles, *(-middle for middle in middles)] if signed else middles
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@functools.cache
def _turns(device: torch.device) -> Float[Tensor, "256"]:
    return (torch.arange(BLOCK, dtype=torch.float64) * _PLASTIC % 1.0).float().to(device)
