"""Classifier-free guidance (Ho & Salimans, 2022)."""

from jaxtyping import Float
from torch import Tensor


def guide(
    unconditional: Float[Tensor, "b c h w"], conditional: Float[Tensor, "b c h w"], scale: float
) -> Float[Tensor, "b c h w"]:
    """unconditional + scale (conditional - unconditional); 1 is no guidance, the paper uses 4.5."""
    return unconditional + scale * (conditional - unconditional)
