"""AdamW whose two moments take a byte each (Dettmers et al., 2022), in plain torch on every device."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pixart_core.training.quantised import (
    Quantised,
    dequantise,
    in_blocks,
    quantise_positive,
    quantise_signed,
    zeros,
)

_CODES = ("first_codes", "second_codes")


class AdamW8bit(Optimizer):
    """AdamW with moments in blocks of 256 bytes; an update takes them as they are before they are rounded.

    Meant for matrices: what has fewer than a few thousand elements saves nothing and is better left to AdamW.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "AdamW8bit takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter)

    def _update(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        state = self.state[parameter]
        if not state:
            empty = zeros(parameter)
            state["step"] = 0
            state["first_codes"], state["first_scale"] = empty.codes.clone(), empty.scale.clone()
            state["second_codes"], state["second_scale"] = empty.codes, empty.scale
        state["step"] += 1
        assert parameter.grad is not None
        gradient = in_blocks(parameter.grad)
        beta1, beta2 = group["betas"]
        first = dequantise(Quantised(state["first_codes"], state["first_scale"]), signed=True)
        second = dequantise(Quantised(state["second_codes"], state["second_scale"]), signed=False)
        first.lerp_(gradient, 1.0 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)

        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        divisor = (second.sqrt() / math.sqrt(1.0 - beta2 ** state["step"])).add_(group["eps"])
        direction = (first / divisor).flatten()[: parameter.numel()].view_as(parameter)
        parameter.add_(direction, alpha=-group["lr"] / (1.0 - beta1 ** state["step"]))
        self._keep(state, "first", quantise_signed(first))
        self._keep(state, "second", quantise_positive(second, state["step"]))

    @staticmethod
    def _keep(state: dict[str, Any], name: str, moment: Quantised) -> None:
        state[f"{name}_codes"].copy_(moment.codes)
        state[f"{name}_scale"].copy_(moment.scale)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which turns every tensor into the parameter's type: codes become bytes again."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in _CODES:
                codes: Tensor = state[name]
                state[name] = codes.to(torch.uint8)
