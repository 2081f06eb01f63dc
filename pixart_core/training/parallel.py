"""How several processes train one model: copies that average gradients (DDP), or each a part (FSDP2)."""

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Literal

from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pixart_core.errors import UserError
from pixart_core.models.build import Transformer

Mode = Literal["alone", "ddp", "fsdp2"]
WHOLE_STATE = ("came", "adamw8bit")


def parallel_mode(asked: Literal["auto", "ddp", "fsdp2"], accelerator: Accelerator) -> Mode:
    """What a run does: `asked` by the recipe, or with auto what accelerate's configuration says, else DDP.

    Raises:
        UserError: accelerate's configuration asks for something else, or for what is not done here.
    """
    configured = configured_fsdp2()
    if asked == "ddp" and configured:
        raise UserError("distributed: ddp, but accelerate is configured for FSDP: change one of both")
    if accelerator.num_processes == 1:
        return "alone"
    return "fsdp2" if asked == "fsdp2" or configured else "ddp"


def refuse_with_fsdp2(mode: Mode, optimizer: str) -> None:
    """Raises:
    UserError: the optimiser's state is not one that can be sharded."""
    if mode == "fsdp2" and optimizer in WHOLE_STATE:
        raise UserError(
            f"optimizer.kind {optimizer} does not go with FSDP2: its state is that of whole matrices; "
            "choose distributed: ddp, or adamw or muon"
        )


def configured_fsdp2() -> bool:
    """Whether accelerate's configuration asks for FSDP2.

    Of its settings FSDP_RESHARD_AFTER_FORWARD is used; blocks are the units whatever it says.

    Raises:
        UserError: it asks for FSDP1, or for parameters in the main memory.
    """
    if not _set("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("accelerate is configured for FSDP version 1; choose fsdp_version: 2")
    if _set("FSDP_OFFLOAD_PARAMS"):
        raise UserError(
            "accelerate is configured with fsdp_offload_params, which is not supported: switch it off"
        )
    return True


def spread(model: Transformer, accelerator: Accelerator, mode: Mode) -> nn.Module:
    """What is called instead of `model` by all processes; the model is on its device afterwards.

    With FSDP2 it is the model itself, whose parameters are then sharded: optimisers come after this.
    """
    if mode != "fsdp2":
        return accelerator.prepare_model(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reshard = _set("FSDP_RESHARD_AFTER_FORWARD", "true")
    # Block by block, so that the device never holds the whole model.
    for block in model.transformer_blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh)
    return model


def reducing(prepared: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Context of a micro-batch: DDP averages gradients over the processes with the `last` of a step only.

    FSDP2 reduces those of every micro-batch: gradients that wait would be whole, and not fit.
    """
    if last or not isinstance(prepared, DistributedDataParallel):
        return contextlib.nullcontext()
    return prepared.no_sync()


def _set(variable: str, default: str = "false") -> bool:
    return os.environ.get(variable, default).lower() in ("true", "1", "yes")
