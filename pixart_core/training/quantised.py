"""Numbers in 8 bits: blocks of 256 that share a scale, and a code that is finer near zero.

Block-wise dynamic quantisation of Dettmers et al. (2022), "8-bit Optimizers via Block-wise Quantization".
"""

import dataclasses
import functools

import torch
from jaxtyping import Float, Int, UInt8
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
    values = table(signed, stored.scale.device).index_select(0, stored.codes.flatten().int())
    return values.view(-1, BLOCK).mul_(stored.scale)


def quantise_signed(values: Float[Tensor, "blocks 256"]) -> Quantised:
    """Round each to the nearest value of its block's table."""
    sizes = values.abs()
    scale = sizes.amax(dim=1, keepdim=True)
    # Places above zero; below zero there is no -1.
    places = _count(_divided(sizes, scale), _middles(values.device), _cells(True, values.device))
    codes = torch.where(values < 0, _ZERO - places.clamp(max=_ZERO), _ZERO + places)
    return Quantised(codes.byte(), scale)


def quantise_positive(values: Float[Tensor, "blocks 256"], time: int) -> Quantised:
    """Round each up or down, in turns that are right on average over `time`; nothing positive becomes 0.

    A mean that moves by a thousandth at a step never leaves its place if it is rounded to the nearest: after
    the gradients have changed it would stay wrong for good. And a divisor of 0 would be a huge update.
    """
    device = values.device
    scale = values.amax(dim=1, keepdim=True)
    entries = table(False, device)
    relative = _divided(values, scale)
    below = _count(relative, entries[1:], _cells(False, device)).clamp_(max=len(entries) - 2)
    low = entries.index_select(0, below.flatten()).view_as(relative)
    gap = entries.diff().index_select(0, below.flatten()).view_as(relative)
    up = relative - low > gap * ((_turns(device) + time * _GOLDEN % 1.0) % 1.0)
    return Quantised((below + up).clamp_(min=1).byte(), scale)


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


def _divided(values: Tensor, scale: Tensor) -> Tensor:
    return values / scale.clamp(min=torch.finfo(torch.float32).tiny)


def _count(
    values: Float[Tensor, "blocks 256"], thresholds: Float[Tensor, " n"], cells: UInt8[Tensor, " cells"]
) -> Int[Tensor, "blocks 256"]:
    """How many `thresholds` are not above each value: what searchsorted says, without searching.

    The leading bits of a float tell its cell of `cells`, none of which holds more than one threshold.
    """
    cell = ((values.view(torch.int32) >> _SHIFT) - _FIRST).clamp_(0, len(cells) - 1).flatten()
    counted = cells.index_select(0, cell).int()
    following = thresholds.index_select(0, counted.clamp(max=len(thresholds) - 1))
    counted += (following <= values.flatten()) & (counted < len(thresholds))
    return counted.view_as(values)


@functools.cache
def _cells(signed: bool, device: torch.device) -> UInt8[Tensor, " cells"]:
    """How many thresholds are not above the lowest value of each cell, from 0 and 2^-22 up to 1."""
    thresholds = _middles(device) if signed else table(False, device)[1:]
    bits = torch.arange(_FIRST, (_bits(1.0) >> _SHIFT) + 1, dtype=torch.int32, device=device) << _SHIFT
    edges = bits.view(torch.float32)
    edges[0] = 0.0
    return torch.searchsorted(thresholds, edges, right=True).byte()


@functools.cache
def _middles(device: torch.device) -> Float[Tensor, "128"]:
    """Between zero and the values above it: where rounding changes."""
    entries = table(True, device)[_ZERO:]
    return (entries[1:] + entries[:-1]) / 2


@functools.cache
def _turns(device: torch.device) -> Float[Tensor, "256"]:
    return (torch.arange(BLOCK, dtype=torch.float64) * _PLASTIC % 1.0).float().to(device)


def _bits(value: float) -> int:
    return int(torch.tensor(value).view(torch.int32))


_ZERO = 127  # the place of 0 in the signed table
_SHIFT = 12  # leaves 11 of a float's 23 bits of fraction
_FIRST = _bits(2.0**-22) >> _SHIFT
