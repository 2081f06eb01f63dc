"""Draws which tokens skip blocks, from (seed, step, place in the global batch) like every other draw."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from pixart_core.recipe.training import TrainStep
from pixart_core.seeding import derive_seed


def draw_kept_tokens(
    step: TrainStep, number: int, slots: Sequence[int], tokens: int
) -> Int[Tensor, "b k"] | None:
    """Places of the tokens that take all blocks at optimiser step `number`, in order; None: all of them.

    Args:
        slots: place of each sample in the global batch.
        tokens: of each picture.
    """
    routing = step.token_routing
    if routing is None or number >= routing.steps(step.max_train_steps):
        return None
    generator = torch.Generator()
    kept = []
    for slot in slots:
        generator.manual_seed(derive_seed(step.seed, "route", number, slot))
        places = torch.randperm(tokens, generator=generator)[: routing.kept(tokens)]
        kept.append(places.sort().values)
    return torch.stack(kept)
