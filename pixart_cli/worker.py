"""One of the processes that `pixart_cli.launching` starts: `python -m pixart_cli.worker FOLDER PARENT`."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from pixart_cli.app import quieten
from pixart_cli.console import RichProgress
from pixart_cli.ending import ending_at_once
from pixart_cli.errors import UNFINISHED, user_errors
from pixart_cli.launching import COMMANDS
from pixart_cli.runners import runner
from pixart_core.errors import PixartError, ToldElsewhereError, UnfinishedError, UserError

# What the parent is told of an error, and the exit code; the first that fits.
ENDS: tuple[tuple[type[BaseException], str, int], ...] = (
    (UserError, "mistake", 2),
    (UnfinishedError, "unfinished", UNFINISHED),
    (PixartError, "failure", 1),
    (KeyboardInterrupt, "interrupt", 130),
)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main(folder: Path, parent: int) -> None:
    """Do the job in `folder`, leave there what the parent shall tell, and exit with its code."""
    with ending_at_once():
        _work(folder, parent)


def _work(folder: Path, parent: int) -> None:
    _end_with(parent)
    # Until a training listens to it, Ctrl-C ends this process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    quieten()
    job = json.loads((folder / "job.json").read_text())
    step = COMMANDS[job["command"]].options.model_validate(job["step"])
    output = Path(job["output"])
    with user_errors(), RichProgress() as progress:
        try:
            result = runner(job["command"])(step, output, progress)
        except ToldElsewhereError:
            raise
        except (PixartError, KeyboardInterrupt) as error:
            kind, code = next((kind, code) for base, kind, code in ENDS if isinstance(error, base))
            _write(folder, {"kind": kind, "message": str(error)})
            sys.exit(code)
    _write(folder, {"result": result})


def _write(folder: Path, end: dict[str, object]) -> None:
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(end, default=str))


def _end_with(parent: int) -> None:
    """Be asked to end when the parent does, even if it is killed (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
