"""`pixart_cli.worker` with a fault, RANK:EVENT:STEP in FAULT.

EVENT is a signal to this process, or with `parent-` before it to the parent.
"""

import os
import signal
import sys
from pathlib import Path

from pixart_cli import worker
from pixart_cli.console import RichProgress


class Faulty(RichProgress):
    """Sends a signal once a step is done."""

    done = 0

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        super().advance(task, units, note)
        self.done += units
        rank, event, step = os.environ.get("FAULT", "none::0").split(":")
        if rank == os.environ["RANK"] and units and self.done == int(step):
            target = os.getppid() if event.startswith("parent-") else os.getpid()
            os.kill(target, getattr(signal, event.removeprefix("parent-")))


worker.RichProgress = Faulty  # type: ignore[attr-defined]
worker.main(Path(sys.argv[1]), int(sys.argv[2]))
