"""The processes of one launch (`accelerate launch`, `torchrun`): which one this is, and a meeting point."""

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

# Rank 0 may look at millions of images while the others wait; the default of half an hour would end the run.
PATIENCE = datetime.timedelta(days=14)


# Set for the processes of a launch.
BEGAN = "PIXART_BEGAN"


@dataclasses.dataclass(frozen=True)
class Processes:
    """One process among those of its launch.

    Attributes:
        rank: 0 is the first, which speaks for all.
        count: of all machines together.
        local_rank: among those of this machine: the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process scans, reports and finishes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every count-th of `items`, from this process's rank on."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Go on when every process has come here; at once when there is only one."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def connect() -> Processes:
    """Join the processes of this launch; without one, be alone.

    Only a launch of several processes imports accelerate and torch.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, state.local_process_index)


def began() -> float:
    """When the command was started that this process belongs to, by the clock that runs since boot.

    That is this process itself, or the one that launched it and set `BEGAN`; now, where the system does not
    tell (not Linux).
    """
    if BEGAN in os.environ:
        return float(os.environ[BEGAN])
    try:
        # The second field, the command, may hold blanks and brackets.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return boot_seconds()


def boot_seconds() -> float:
    """Seconds since the machine was booted; sleep counts where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def visible_gpus() -> int:
    """CUDA devices of this machine; 0 where ACCELERATE_USE_CPU is set."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return 0
    import torch

    return torch.cuda.device_count()


@contextlib.contextmanager
def meeting_point() -> Iterator[int]:
    """Port of a store on this machine that processes meet in; it outlives each of them, as torchrun's."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
