"""Eight bits a value, one scale for every 64 neighbours: how feature shards are stored by default."""

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Int8
from torch import Tensor

GROUP = 64


def quantise(
    values: Float[Tensor, "*rows n"],
) -> tuple[Int8[Tensor, "*rows n"], BFloat16[Tensor, "*rows groups"]]:
    """Round `values` to int8 multiples of a scale per group of 64 along the last dimension.

    The scale is bfloat16, not float16: it must hold the standard deviations of a VAE (1e-6 and less)
    as well as the outliers of a text encoder, and its precision does not limit the result.
    """
    groups = _grouped(values.float())
    work = groups.abs()
    scale = (work.amax(-1, keepdim=True) / 127).bfloat16()
    # A group of zeros has scale zero; dividing by 1 keeps its zeros.
    torch.div(groups, torch.where(scale == 0, 1, scale).float(), out=work)
    codes = work.round_().clamp_(-127, 127).to(torch.int8)
    return codes.flatten(-2)[..., : values.shape[-1]].contiguous(), scale.squeeze(-1)


def dequantise(
    codes: Int8[Tensor, "*rows n"],
    scale: BFloat16[Tensor, "*rows groups"],
    out: Float[Tensor, "*rows n"] | None = None,
) -> Float[Tensor, "*rows n"]:
    """Undo `quantise`, in float32; into `out` if it is given (its last dimension is contiguous)."""
    values = torch.empty(codes.shape) if out is None else out
    values.copy_(codes)
    whole = codes.shape[-1] // GROUP * GROUP
    factors = scale.float()
    values[..., :whole].unflatten(-1, (-1, GROUP)).mul_(factors[..., : whole // GROUP, None])
    if whole < codes.shape[-1]:
        values[..., whole:].mul_(factors[..., -1:])
    return values


def _grouped(values: Tensor) -> Tensor:
    """(..., n) -> (..., ceil(n / 64), 64), padded with zeros."""
    missing = -values.shape[-1] % GROUP
    if missing:
        values = F.pad(values, (0, missing))
    return values.unflatten(-1, (-1, GROUP))
