"""The end of a process that worked with others."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process, one of several of a launch, where the block ends or raises `SystemExit`.

    Exit functions run, but Python is not taken apart: threads of a process group may outlive it, and one that
    wants to go on then ends the process with SIGABRT ("terminate called without an active exception"), though
    all its work is done. A bug's traceback comes as ever, and a process that is alone ends as ever.
    """
    code: object = 0
    try:
        yield
    except SystemExit as end:
        code = end.code
        if os.environ.get("WORLD_SIZE", "1") == "1" or isinstance(code, str):
            raise
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)
