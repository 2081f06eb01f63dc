"""Exponential moving average of the weights."""

import torch
from torch import Tensor, nn


class Ema:
    """Float32 copy of a model's parameters, `ema = decay ema + (1 - decay) weights` after each step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone().float() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model; one fused operation over all tensors."""
        current = [p.detach().float() for p in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1.0 - self.decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Continue from saved averages; names and shapes must be those of the model."""
        assert weights.keys() == self.weights.keys()
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])
