"""Exponential moving average of the weights."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pixart_core.training.shards import as_sharded, local, whole


class Ema:
    """Float32 copy of a model's parameters, `ema = decay ema + (1 - decay) weights` after each step.

    With `offload` it lies in the main memory: the weights of a step are copied there, and averaged by a
    thread while the next step is computed. The average is the same.

    Of a model that is sharded (FSDP2) each process averages its part.
    """

    def __init__(self, model: nn.Module, decay: float, *, offload: bool = False) -> None:
        self.decay = decay
        self.layouts = dict(model.named_parameters())
        self._weights = {
            name: local(p.detach()).to("cpu" if offload else p.device, torch.float32, copy=True)
            for name, p in self.layouts.items()
        }
        self._offloaded = _Offloaded(self._weights.values(), decay) if offload else None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name, of all updates so far: this process's parts."""
        if self._offloaded is not None:
            self._offloaded.wait()
        return self._weights

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Names and whole averages, one after the other; every process must go through them."""
        for name, part in self.weights.items():
            yield name, whole(as_sharded(part, self.layouts[name]))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model; one fused operation over all tensors."""
        current = [local(p.detach()) for p in model.parameters()]
        if self._offloaded is not None:
            self._offloaded.update(current)
        else:
            _move(list(self._weights.values()), [p.float() for p in current], self.decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Continue from saved averages (this process's parts), by the model's names."""
        assert weights.keys() == self.weights.keys()
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])


class _Offloaded:
    """Averages in the main memory, one update behind the device at most."""

    def __init__(self, averages: Iterable[Tensor], decay: float) -> None:
        self.averages = list(averages)
        self.decay = decay
        # Page-locked: a GPU writes there while the host goes on.
        pinned = torch.cuda.is_available()
        self.arrived = [torch.empty_like(average, pin_memory=pinned) for average in self.averages]
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="ema")
        self.pending: Future[None] | None = None

    def update(self, current: list[Tensor]) -> None:
        self.wait()  # the copies of the step before are still being read
        for arrived, parameter in zip(self.arrived, current, strict=True):
            arrived.copy_(parameter, non_blocking=True)
        copied = None
        if current and current[0].device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        self.pending = self.worker.submit(self._average, copied)

    @torch.no_grad()
    def _average(self, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        _move(self.averages, self.arrived, self.decay)

    def wait(self) -> None:
        if self.pending is not None:
            self.pending.result()
            self.pending = None


def _move(averages: list[Tensor], current: list[Tensor], decay: float) -> None:
    torch._foreach_lerp_(averages, current, 1.0 - decay)
