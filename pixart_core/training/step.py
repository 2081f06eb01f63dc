"""One optimiser step: the only place in the tree that calls backward."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pixart_core.diffusion.loss import LossTerms, diffusion_loss
from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.diffusion.weighting import UNIFORM, Weighting
from pixart_core.errors import PixartError
from pixart_core.training.batches import TrainingBatch
from pixart_core.training.ema import Ema
from pixart_core.training.optimizer import Optimizers
from pixart_core.training.parallel import reducing
from pixart_core.training.shards import whole


@dataclasses.dataclass(frozen=True)
class StepStats:
    """Means over this process's share of the batch, on the CPU.

    Attributes:
        lost: whether they are not finite, and nothing was updated.
    """

    loss: Tensor
    mse: Tensor
    vb: Tensor
    grad_norm: Tensor
    lost: bool = False


class NonFiniteError(PixartError):
    """Loss or gradient is not finite. Weights, averages and optimiser are as before the step."""


class LostStepError(Exception):
    """A step whose loss or gradient is not finite, on this or another process; nothing was updated.

    Attributes:
        stats: of this process, not finite everywhere.
        samples: ids of this process's samples whose own loss is not finite.
    """

    def __init__(self, stats: StepStats, samples: list[str]) -> None:
        super().__init__("loss or gradient is not finite")
        self.stats = stats
        self.samples = samples


def batch_loss(
    model: nn.Module,
    batch: TrainingBatch,
    *,
    schedule: NoiseSchedule,
    prediction_type: str,
    weighting: Weighting = UNIFORM,
    autocast: torch.dtype | None,
    micro_conditions: bool = False,
) -> LossTerms:
    """Forward pass and loss of one micro-batch, (b,) each."""
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    conditions: dict[str, Any]
    if batch.labels is not None:
        conditions = {"labels": batch.labels}
    else:
        conditions = {"text_embeds": batch.text, "text_mask": batch.mask}
        if micro_conditions:
            conditions |= {"resolution": batch.resolution, "aspect_ratio": batch.aspect_ratio}
    if batch.kept_tokens is not None:
        conditions["kept_tokens"] = batch.kept_tokens
    device = batch.latents.device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        output = model(noisy, batch.timesteps, **conditions)
    return diffusion_loss(
        schedule,
        output,
        latents=batch.latents,
        noise=batch.noise,
        timesteps=batch.timesteps,
        prediction_type=prediction_type,
        weighting=weighting,
    )


def train_step(
    model: nn.Module,
    optimizers: Optimizers,
    ema: Ema,
    micro_batches: Iterable[TrainingBatch],
    loss_fn: Callable[[nn.Module, TrainingBatch], LossTerms],
    *,
    count: int,
    max_grad_norm: float,
    on_any: Callable[[bool], bool] = bool,
) -> StepStats:
    """Accumulate the gradients of `count` equal micro-batches, then update weights and EMA.

    Args:
        on_any: whether something is so on any process: all have to agree on whether to update.

    Raises:
        LostStepError: loss or gradient norm is not finite; nothing was updated.
    """
    optimizers.zero_grad()
    mse = vb = torch.zeros((), device=next(model.parameters()).device)
    losses: list[tuple[list[str], Tensor]] = []
    for number, batch in enumerate(micro_batches, start=1):
        with reducing(model, last=number == count):
            terms = loss_fn(model, batch)
            (terms.total.mean() / count).backward()
        mse = mse + terms.mse.detach().mean() / count
        if terms.vb is not None:
            vb = vb + terms.vb.detach().mean() / count
        losses.append((batch.ids, terms.total.detach()))
    grad_norm = whole(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    # The one time in a step that a GPU is waited for.
    mse, vb, grad_norm = torch.stack([mse, vb, grad_norm.to(mse)]).cpu().unbind()
    stats = StepStats(mse + vb, mse, vb, grad_norm)
    if on_any(not bool(torch.isfinite(mse + vb + grad_norm))):
        raise LostStepError(dataclasses.replace(stats, lost=True), _not_finite(losses))
    optimizers.step()
    ema.update(model)
    return stats


def _not_finite(losses: list[tuple[list[str], Tensor]]) -> list[str]:
    """Ids of the samples whose loss is not finite."""
    return [
        name
        for ids, values in losses
        for name, finite in zip(ids, torch.isfinite(values).tolist(), strict=True)
        if not finite
    ]
