"""Muon that orthogonalises matrices of one shape together.

`torch.optim.Muon` goes matrix by matrix. A transformer has a few shapes and many matrices of each; stacked,
they cost one batched product instead of many small ones: 0.6 of the time at the quickstart's width on two
cores, an eighth of a training step. The update is torch's to the bit (a test compares).
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Muon

from pixart_core.training.shards import as_sharded, local, part_of, whole


class StackedMuon(Muon):
    """`torch.optim.Muon` with stacked Newton-Schulz iterations; same arguments, same state."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "StackedMuon takes no closure"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._update(group, shape, parameters)

    def _update(self, group: dict[str, Any], shape: torch.Size, parameters: list[Tensor]) -> None:
        """Matrices of one `shape`; sharded ones (FSDP2) are gathered, orthogonalised whole, cut again."""
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(local(state["momentum_buffer"]))
        torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
        directions = (
            torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
        )
        matrices = [whole(as_sharded(d, p)) for d, p in zip(directions, parameters, strict=True)]
        updates = orthogonalize(
            torch.stack(matrices), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        weights = [local(parameter) for parameter in parameters]
        parts = [part_of(u.to(p.dtype), p) for u, p in zip(updates.unbind(), parameters, strict=True)]
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        scale = -_scaled(group["lr"], group["adjust_lr_fn"], shape)
        torch._foreach_add_(weights, parts, alpha=scale)


def orthogonalize(
    matrices: Float[Tensor, "k a b"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "k a b"]:
    """Roughly the nearest semi-orthogonal matrices: Newton-Schulz in bf16 (Jordan et al., 2024)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _scaled(learning_rate: float, rule: str | None, shape: torch.Size) -> float:
    """Learning rate of a matrix: torch's two published rules."""
    if rule == "match_rms_adamw":
        return learning_rate * 0.2 * max(shape) ** 0.5
    return learning_rate * max(1.0, shape[0] / shape[1]) ** 0.5
