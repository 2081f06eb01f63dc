"""Learning rate as a function of the optimiser step, counted once whatever the number of processes."""

import math

from pixart_core.recipe.training import TrainStep


def learning_rate_factor(
    step: int, *, scheduler: str, warmup_steps: int, max_train_steps: int, min_fraction: float
) -> float:
    """What the peak learning rate is multiplied with at `step` (0-based).

    Linear warm-up over `warmup_steps`, then constant, or a line or cosine to `min_fraction` at the last step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if scheduler == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, max_train_steps - 1 - warmup_steps))
    if scheduler == "linear":
        return 1.0 - (1.0 - min_fraction) * done
    assert scheduler == "cosine", scheduler
    return min_fraction + (1.0 - min_fraction) * 0.5 * (1.0 + math.cos(math.pi * done))


def learning_rate_at(step: TrainStep, number: int) -> float:
    """Learning-rate factor of optimiser step `number` of `step`'s training."""
    return learning_rate_factor(
        number,
        scheduler=step.lr_scheduler,
        warmup_steps=step.lr_warmup_steps,
        max_train_steps=step.max_train_steps,
        min_fraction=step.lr_min_fraction,
    )
