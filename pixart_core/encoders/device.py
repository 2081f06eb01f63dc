"""Where to compute."""

import torch

from pixart_core.errors import UserError


def choose_device(device: str | None, local_rank: int = 0) -> torch.device:
    """`device`, or the best there is.

    Args:
        local_rank: number of this process on its machine: of several GPUs it takes that one, unless
            `device` names another.

    Raises:
        UserError: no such device, or none on this machine.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.device_count() > 1:
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device: {device!r} is no device (cuda, cuda:1, cpu, ...)") from error
    try:
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"device: {device!r} cannot be used on this machine ({reason})") from error
    return chosen
