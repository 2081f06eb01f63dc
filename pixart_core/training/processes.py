"""The processes of a run: accelerate launches and connects them, the recipe alone says what they compute."""

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from pixart_core.errors import PixartError, UserError
from pixart_core.recipe.training import TrainStep

Value = TypeVar("Value")

SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_CPU,
    DistributedType.FSDP,
)


def connect() -> Accelerator:
    """Join the processes of this run.

    Precision and accumulation are the recipe's: what accelerate's own configuration says of them is not used.

    Raises:
        UserError: a launch that would not train one model together.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if launched > 1 and missing:
        raise UserError(
            f"WORLD_SIZE says {launched} processes, but {', '.join(missing)} is not set: launch with "
            "torchrun or accelerate, or unset WORLD_SIZE"
        )
    # Without a GPU accelerate would leave each of them alone.
    accelerator = Accelerator(mixed_precision="no", cpu=launched > 1 and not torch.accelerator.is_available())
    if accelerator.distributed_type not in SUPPORTED:
        raise UserError(f"{accelerator.distributed_type.value} is not supported, only DDP and FSDP2")
    if launched != accelerator.num_processes:
        made = accelerator.num_processes
        raise UserError(f"{launched} processes were launched, but accelerate connected {made}")
    return accelerator


def rank_slots(step: TrainStep, accelerator: Accelerator) -> range:
    """The places of the global batch that this process computes.

    Raises:
        UserError: the batch does not divide.
    """
    try:
        step.micro_batch_of(accelerator.num_processes)
    except ValueError as error:
        raise UserError(str(error)) from error
    share = step.global_batch_size // accelerator.num_processes
    return range(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def on_any(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Which of `flags` are set on any process: all must stop at the same step."""
    if accelerator.num_processes == 1:
        return list(flags)
    own = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [total > 0 for total in accelerator.reduce(own, "sum").tolist()]


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """Each value averaged over the processes."""
    if accelerator.num_processes == 1:
        return values
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(values, accelerator.reduce(stacked, "mean").tolist(), strict=True))


def all_told(accelerator: Accelerator, value: Value) -> list[Value]:
    """What each process gives (anything that pickles), in the order of the processes."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Value] = [value] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def failing_together(accelerator: Accelerator) -> Iterator[None]:
    """What a person can act on (`PixartError`) in one process is raised in all of them.

    Nobody may be asked inside after such an error.
    """
    failure: PixartError | None = None
    try:
        yield
    except PixartError as error:
        failure = error
    failures = all_told(accelerator, failure)
    if found := failure or next((failure for failure in failures if failure), None):
        raise found
