"""The model with its EMA weights inside, for a while."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pixart_core.models.block import TransformerBlock
from pixart_core.training.ema import Ema
from pixart_core.training.shards import local


@contextlib.contextmanager
def evaluating(model: nn.Module, ema: Ema | None) -> Iterator[None]:
    """`model` in evaluation mode, with the averaged weights if `ema` is given; no gradients inside.

    Weights and averages change places tensor by tensor, so that no second model has to fit on the device;
    afterwards both are bit for bit as before. Compiled blocks run as they are written: other sizes and no
    gradients would be compiled anew, for a few passes.
    """
    training = model.training
    model.eval()
    compiled = [(block, block.compiled) for block in model.modules() if isinstance(block, TransformerBlock)]
    for block, _ in compiled:
        block.compiled = None
    exchanged: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            _reshard(model)
            weights = ema.weights if ema is not None else {}
            for name, parameter in model.named_parameters() if ema is not None else ():
                pair = local(parameter.detach()), weights[name]
                _exchange(*pair)
                exchanged.append(pair)
            yield
    finally:
        with torch.no_grad():
            _reshard(model)
            for pair in exchanged:
                _exchange(*pair)
        for block, run in compiled:
            block.compiled = run
        model.train(training)


def _exchange(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype, "rounding would not come back"
    try:
        kept = a.clone()
    except torch.OutOfMemoryError:  # what did not fit may still be held, and half an exchange would train on
        kept = a.to("cpu", copy=True)
    a.copy_(b)
    b.copy_(kept)


def _reshard(model: nn.Module) -> None:
    """With FSDP2: forget what was gathered, which an exchange does not reach."""
    for module in model.modules():
        if callable(reshard := getattr(module, "reshard", None)):
            reshard()
