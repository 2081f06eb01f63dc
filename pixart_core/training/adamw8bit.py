"""AdamW whose two moments take a byte each (Dettmers et al., 2022), in plain torch on every device."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
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
# Elements that are updated at once. A GPU is slow at many small operations, but what is computed of these
# takes a few hundred megabytes; a CPU wants them in its cache.
_TOGETHER = {"cpu": 2**17}
_TOGETHER_ELSEWHERE = 2**23


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
            for parameters in together(p for p in group["params"] if p.grad is not None):
                states = [self.state[parameter] for parameter in parameters]
                for parameter, state in zip(parameters, states, strict=True):
                    if not state:
                        first, second = zeros(parameter), zeros(parameter)
                        state["first_codes"], state["first_scale"] = first.codes, first.scale
                        state["second_codes"], state["second_scale"] = second.codes, second.scale
                        state["step"] = 0
                    state["step"] += 1
                by_step: dict[int, list[int]] = defaultdict(list)
                for number, state in enumerate(states):
                    by_step[state["step"]].append(number)
                for time, numbers in by_step.items():
                    _update(group, time, [parameters[n] for n in numbers], [states[n] for n in numbers])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which turns every tensor into the parameter's type: codes become bytes again."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in _CODES:
                codes: Tensor = state[name]
                state[name] = codes.to(torch.uint8)


def together(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in order, in lists of a few million elements at most (fewer on a CPU), or of one."""
    waiting: list[nn.Parameter] = []
    for parameter in parameters:
        most = _TOGETHER.get(parameter.device.type, _TOGETHER_ELSEWHERE)
        if waiting and sum(p.numel() for p in waiting) + parameter.numel() > most:
            yield waiting
            waiting = []
        waiting.append(parameter)
    if waiting:
        yield waiting


def _update(
    group: dict[str, Any], time: int, parameters: list[nn.Parameter], states: list[dict[str, Any]]
) -> None:
    """Update number `time` of several parameters, their blocks being one under the other."""
    beta1, beta2 = group["betas"]
    gradient = torch.cat(
        [in_blocks(parameter.grad) for parameter in parameters if parameter.grad is not None]
    )
    first = dequantise(_stored(states, "first"), signed=True).lerp_(gradient, 1.0 - beta1)
    second = dequantise(_stored(states, "second"), signed=False)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)

    divisor = second.sqrt().div_(math.sqrt(1.0 - beta2**time)).add_(group["eps"])
    blocks = [len(state["first_scale"]) for state in states]
    directions = [
        part.flatten()[: parameter.numel()].view_as(parameter)
        for part, parameter in zip((first / divisor).split(blocks), parameters, strict=True)
    ]
    weights: list[Tensor] = [*parameters]
    torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, directions, alpha=-group["lr"] / (1.0 - beta1**time))
    _store(states, "first", quantise_signed(first), blocks)
    _store(states, "second", quantise_positive(second, time), blocks)


def _stored(states: list[dict[str, Any]], name: str) -> Quantised:
    return Quantised(
        torch.cat([state[f"{name}_codes"] for state in states]),
        torch.cat([state[f"{name}_scale"] for state in states]),
    )


def _store(states: list[dict[str, Any]], name: str, moment: Quantised, blocks: list[int]) -> None:
    torch._foreach_copy_([state[f"{name}_codes"] for state in states], moment.codes.split(blocks))
    torch._foreach_copy_([state[f"{name}_scale"] for state in states], moment.scale.split(blocks))
