"""`pixart_cli.worker` whose process RANK is killed when about to write its n-th image: RANK:N in FAULT."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from pixart_cli import worker
from pixart_core.sampling import sample

RANK, NUMBER = os.environ["FAULT"].split(":")
WRITE, written = sample.write_image, 0


def write(*args: Any) -> None:
    """Die or write."""
    global written
    written += 1
    if os.environ["RANK"] == RANK and written == int(NUMBER):
        os.kill(os.getpid(), signal.SIGKILL)
    WRITE(*args)


sample.write_image = write
worker.main(Path(sys.argv[1]), int(sys.argv[2]))
