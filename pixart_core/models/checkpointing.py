"""Gradient checkpointing: what the backward pass computes again instead of keeping."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "selective", "full"]

_aten = torch.ops.aten
# Matrix products and attention: what costs the time.
KEPT_OPERATIONS = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
_keep_products = functools.partial(create_selective_checkpoint_contexts, KEPT_OPERATIONS)


def run_checkpointed(function: Callable[..., Tensor], *inputs: Any, mode: Checkpointing) -> Tensor:
    """`function(*inputs)`, its inside forgotten until the backward pass.

    "none" keeps everything. "full" keeps the inputs alone and runs the whole function again; "selective"
    also keeps the results of `KEPT_OPERATIONS` and runs norms, modulation and GELU again (Korthikanti et
    al., 2022). Gradients are those of "none", bit for bit where the operations are deterministic.
    """
    if mode == "none" or not torch.is_grad_enabled():
        return function(*inputs)
    if mode == "selective":
        return checkpoint(function, *inputs, use_reentrant=False, context_fn=_keep_products)
    assert mode == "full", mode
    return checkpoint(function, *inputs, use_reentrant=False)
