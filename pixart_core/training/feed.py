"""From the feature store to the micro-batches of an optimiser step."""

import dataclasses
from collections.abc import Iterator

from pixart_core.artifacts.features import FeatureStore
from pixart_core.recipe.training import TrainStep
from pixart_core.training.batches import TrainingBatch, Unconditional, draw_flips, make_batch
from pixart_core.training.order import BatchOrder
from pixart_core.training.routing import draw_kept_tokens


def micro_batches(
    step: TrainStep,
    store: FeatureStore,
    order: BatchOrder,
    slots: range,
    number: int,
    *,
    unconditional: Unconditional | None,
    null_class: int,
    patch_size: int,
) -> Iterator[TrainingBatch]:
    """The micro-batches of optimiser step `number`, on the CPU.

    Args:
        slots: places of the global batch that this process computes.
        unconditional: what dropped captions become; None for a class-conditional model.
        null_class: what dropped classes become.
        patch_size: of the model; with a bucket's latents it tells how many tokens there are to route.
    """
    bucket, indices = order[number]
    size = step.micro_batch_of(step.global_batch_size // len(slots))
    for start in range(slots.start, slots.stop, size):
        places = range(start, start + size)
        batch = make_batch(
            store.batch(
                bucket,
                indices[places.start : places.stop].tolist(),
                draw_flips(step.seed, number, places) if store.flips else None,
                text=unconditional is not None,
            ),
            places,
            seed=step.seed,
            step=number,
            scaling_factor=store.scaling_factor,
            shift_factor=store.shift_factor,
            dropout=step.caption_dropout,
            unconditional=unconditional,
            null_class=None if unconditional is not None else null_class,
        )
        height, width = batch.latents.shape[-2:]
        tokens = (height // patch_size) * (width // patch_size)
        yield dataclasses.replace(batch, kept_tokens=draw_kept_tokens(step, number, places, tokens))
