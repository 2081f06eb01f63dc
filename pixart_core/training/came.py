"""CAME: AdamW's memory of matrices in rows and columns, guided by its own confidence.

Luo et al. (2023), "CAME: Confidence-guided Adaptive Memory Efficient Optimization", Algorithm 2, with the
defaults of the authors' code, which scales updates down to a root mean square of 1 (as Adafactor does).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from pixart_core.training.adamw8bit import together


class Came(Optimizer):
    """CAME; a convolution counts as the matrix (out, in x height x width).

    Neither moment is corrected for its start at zero: the first updates are too large by up to
    `1 / sqrt(1 - beta3)`, and a warm-up of the learning rate is part of the method.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Came takes no closure"
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, bool], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, parameter in self.state].append(parameter)
            for parameters in alike.values():
                for part in together(parameters):
                    _update(group, part, [self.state[parameter] for parameter in part])


def _update(group: dict[str, Any], parameters: list[nn.Parameter], states: list[dict[str, Any]]) -> None:
    """Update parameters of one shape, stacked."""
    beta1, beta2, beta3 = group["betas"]
    eps1, eps2 = group["eps"]
    gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
    g = gradients.flatten(2) if gradients.ndim > 2 else gradients  # (k, a, b), or (k, n)
    u = g * _one_over_root(states, "square", g.square() + eps1, beta2)
    size = u.flatten(1).square().mean(dim=1).sqrt() / group["clip_threshold"]
    u = u / size.clamp(min=1.0).view(-1, *[1] * (u.ndim - 1))
    update = _moved(states, "mean", u, beta1)
    if g.ndim > 2:
        # Where updates and their mean disagree, the step is smaller.
        unsure = (u - update).square() + eps2
        update = update * _one_over_root(states, "instability", unsure, beta3)
    weights: list[Tensor] = [*parameters]
    torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, update.view_as(gradients).unbind(), alpha=-group["lr"])


def _one_over_root(states: list[dict[str, Any]], name: str, values: Tensor, beta: float) -> Tensor:
    """1 / sqrt of the running mean of `values`; of matrices only the means of rows and columns are kept."""
    if values.ndim == 2:
        return _moved(states, name, values, beta).rsqrt()
    rows: Float[Tensor, "k a"] = _moved(states, f"{name}_rows", values.mean(dim=2), beta)
    columns: Float[Tensor, "k b"] = _moved(states, f"{name}_columns", values.mean(dim=1), beta)
    return (rows / rows.mean(dim=1, keepdim=True)).rsqrt()[:, :, None] * columns.rsqrt()[:, None, :]


def _moved(states: list[dict[str, Any]], name: str, values: Tensor, beta: float) -> Tensor:
    """The running means, moved towards `values`, stacked like them."""
    for state, value in zip(states, values, strict=True):
        if name not in state:
            state[name] = torch.zeros_like(value)
    means = [state[name] for state in states]
    torch._foreach_mul_(means, beta)
    torch._foreach_add_(means, values.unbind(), alpha=1.0 - beta)
    return torch.stack(means)
