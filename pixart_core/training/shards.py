"""Tensors of which each process holds a part (FSDP2's DTensor), and plain ones, behind the same functions."""

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process holds a part only (asked without importing DTensor, which takes half a second)."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; of a sharded tensor every process must ask, and each gets it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def as_sharded(part: Tensor, like: Tensor) -> Tensor:
    """This process's `part` of a tensor that is laid out as `like`; itself where `like` is plain."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(
        part.to(like.device), mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """The part of `full` that this process holds of `like`, on the device of `like`; nobody is asked."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    there = full.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None).to_local()
