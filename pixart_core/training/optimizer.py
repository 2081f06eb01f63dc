"""Optimisers: AdamW as in the paper, in 8 bits, CAME, or Muon on hidden matrices with AdamW on the rest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from pixart_core.recipe.optimizers import AdamW8bitOptions, AdamWOptions, CameOptions
from pixart_core.recipe.training import TrainStep
from pixart_core.training.adamw8bit import AdamW8bit
from pixart_core.training.came import Came
from pixart_core.training.muon import StackedMuon

# First and last layers, and tables (E(i) is six vectors, not a linear map).
_OUTER = (
    "linear_1.weight",
    "embedding_table.weight",
    "scale_shift_table",
    "proj_out.weight",
    "proj_out_1.weight",
    "proj_out_2.weight",
)
_WORTH_8_BITS = 4096  # elements, as in bitsandbytes: what is smaller saves nothing


class Optimizers:
    """One or two torch optimisers behind the interface of one, with a common learning-rate factor."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        for part in self.parts:
            for group in part.param_groups:
                group.setdefault("initial_lr", group["lr"])

    def set_factor(self, factor: float) -> None:
        """Multiply every group's peak learning rate with `factor` for the next step."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def build_optimizers(step: TrainStep, model: nn.Module) -> Optimizers:
    """The optimiser that the recipe asks for."""
    options = step.optimizer
    if isinstance(options, AdamWOptions | AdamW8bitOptions):
        build = build_adamw if isinstance(options, AdamWOptions) else build_adamw8bit
        return build(
            model,
            learning_rate=step.learning_rate,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
    if isinstance(options, CameOptions):
        return build_came(
            model,
            learning_rate=step.learning_rate,
            betas=options.betas,
            eps=options.eps,
            clip_threshold=options.clip_threshold,
            weight_decay=options.weight_decay,
        )
    return build_muon(
        model,
        learning_rate=step.learning_rate,
        adamw_learning_rate=options.adamw_learning_rate or step.learning_rate,
        momentum=options.momentum,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
    )


def build_adamw(
    model: nn.Module, *, learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Optimizers:
    """AdamW on every parameter, none excluded from weight decay (as in the released code)."""
    return Optimizers([_adamw(list(model.parameters()), learning_rate, betas, eps, weight_decay)])


def build_adamw8bit(
    model: nn.Module, *, learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Optimizers:
    """AdamW with moments of a byte on what is large, with moments of four on the rest."""
    large = [parameter for parameter in model.parameters() if parameter.numel() >= _WORTH_8_BITS]
    small = [parameter for parameter in model.parameters() if parameter.numel() < _WORTH_8_BITS]
    parts: list[torch.optim.Optimizer] = []
    if large:
        parts.append(AdamW8bit(large, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay))
    if small:
        parts.append(_adamw(small, learning_rate, betas, eps, weight_decay))
    return Optimizers(parts)


def build_came(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float, float],
    eps: tuple[float, float],
    clip_threshold: float,
    weight_decay: float,
) -> Optimizers:
    """CAME on every parameter; matrices by rows and columns, biases whole."""
    return Optimizers(
        [
            Came(
                model.parameters(),
                lr=learning_rate,
                betas=betas,
                eps=eps,
                clip_threshold=clip_threshold,
                weight_decay=weight_decay,
            )
        ]
    )


def build_muon(
    model: nn.Module,
    *,
    learning_rate: float,
    adamw_learning_rate: float,
    momentum: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Optimizers:
    """Muon on the matrices from hidden layer to hidden layer, AdamW on the rest.

    The rest: what reads pixels, sinusoids, captions or classes, what writes the output, tables and biases.
    adaLN-single's MLP is a hidden matrix like any other.

    Muon's updates are scaled to the size of AdamW's (Liu et al., 2025), so that one learning rate serves
    both.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and not name.endswith(_OUTER)
        (matrices if hidden else rest).append(parameter)
    return Optimizers(
        [
            StackedMuon(
                matrices,
                lr=learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            _adamw(rest, adamw_learning_rate, betas, eps, weight_decay),
        ]
    )


def _adamw(
    parameters: list[nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> AdamW:
    return AdamW(parameters, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
