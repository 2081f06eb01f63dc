"""torch.compile, block by block: all blocks are alike, so one compilation serves them all."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from pixart_core.errors import UserError
from pixart_core.models.block import TransformerBlock, run_layers
from pixart_core.models.build import Transformer


def compile_blocks(model: Transformer, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let the blocks of `model` run compiled, in the forward and the backward pass.

    Names of parameters, hooks and gradient checkpointing stay as they are. The first steps take longer:
    what changes from batch to batch (length of captions, shape of pictures) is compiled anew once, for any
    number then.
    """
    # Selective checkpointing makes torch ask for a look at in-place operations; compiled blocks have none.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_other_than_in_place)
    compiled = torch.compile(run_layers, backend=backend)
    for block in model.transformer_blocks:
        assert isinstance(block, TransformerBlock)
        block.compiled = compiled


def check_compiler(device: torch.device) -> None:
    """Compile something small on `device`.

    Raises:
        UserError: there is no compiler that works: a CPU needs one of C++ and Python's headers, a GPU Triton.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of the compiler, of Triton or of torch, each its own
        needs = "a C++ compiler (g++) and Python's headers" if device.type == "cpu" else "Triton and gcc"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"compile: true needs {needs}: {reason}; install them or set compile: false"
        ) from error


def _other_than_in_place(record: logging.LogRecord) -> bool:
    return "context_fn is passed" not in record.getMessage()
