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


class NonFiniteError(PixartError):
    """Loss or gradient is not finite. Weights, averages and optimiser are as before the step."""


@dataclasses.dataclass(frozen=True)
class StepStats:
    """Means over this process's share of the batch, on the CPU."""

    loss: Tensor
    mse: Tensor
    vb: Tensor
    grad_norm: Tensor


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
) -> StepStats:
    """Accumulate the gradients of `count` equal micro-batches, then update weights and EMA.

    Raises:
        NonFiniteError: loss or gradient norm is not finite; nothing was updated.
    """
    optimizers.zero_grad()
    mse, vb, ids = torch.zeros(()), torch.zeros(()), []
    for number, batch in enumerate(micro_batches, start=1):
        with reducing(model, last=number == count):
            terms = loss_fn(model, batch)
            (terms.total.mean() / count).backward()
        mse = mse + terms.mse.detach().mean().cpu() / count
        if terms.vb is not None:
            vb = vb + terms.vb.detach().mean().cpu() / count
        ids += batch.ids
    grad_norm = whole(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)).cpu()
    if not torch.isfinite(mse + vb + grad_norm):
        raise NonFiniteError(
            f"loss {float(mse + vb):g}, gradient norm {float(grad_norm):g}; batch: {', '.join(ids)}"
        )
    optimizers.step()
    ema.update(model)
    return StepStats(mse + vb, mse, vb, grad_norm)
