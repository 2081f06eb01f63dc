"""CAME: AdamW's memory of matrices in rows and columns, guided by its own confidence.

Luo et al. (2023), "CAME: Confidence-guided Adaptive Memory Efficient Optimization", Algorithm 2, with the
defaults of the authors' code, which scales updates down to a root mean square of 1 (as Adafactor does).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer


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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._update(group, self.state[parameter], parameter.grad)
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.sub_(group["lr"] * update)

    def _update(self, group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
        beta1, beta2, beta3 = group["betas"]
        eps1, eps2 = group["eps"]
        g = gradient.flatten(1) if gradient.ndim > 1 else gradient
        u = g * _mean_of(state, "square", g.square() + eps1, beta2)
        u = u / (u.square().mean().sqrt() / group["clip_threshold"]).clamp(min=1.0)
        if "mean" not in state:
            state["mean"] = torch.zeros_like(u)
        m = state["mean"].mul_(beta1).add_(u, alpha=1.0 - beta1)
        if g.ndim == 1:
            return m
        # Where updates and their mean disagree, the step is smaller.
        return (m * _mean_of(state, "instability", (u - m).square() + eps2, beta3)).view_as(gradient)


def _mean_of(state: dict[str, Any], name: str, values: Tensor, beta: float) -> Tensor:
    """1 / sqrt of the running mean of `values`; of a matrix only the means of rows and columns are kept."""
    if values.ndim == 1:
        return _moved(state, name, values, beta).rsqrt()
    rows: Float[Tensor, " a"] = _moved(state, f"{name}_rows", values.mean(dim=1), beta)
    columns: Float[Tensor, " b"] = _moved(state, f"{name}_columns", values.mean(dim=0), beta)
    return (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()[None, :]


def _moved(state: dict[str, Any], name: str, values: Tensor, beta: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(values)
    return state[name].mul_(beta).add_(values, alpha=1.0 - beta)
