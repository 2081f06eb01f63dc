"""What a person sees when something goes wrong: one line and an exit code, or a bug's traceback."""

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from pydantic import ValidationError

from pixart_core.errors import PixartError, ToldElsewhereError, UnfinishedError, UserError

# EX_TEMPFAIL of sysexits.h: not an error, try again; batch systems can be told to requeue on it.
UNFINISHED = 75


def fail(message: str, code: int) -> NoReturn:
    """Print `pixart: error: message` on stderr and leave with `code`."""
    print(f"pixart: error: {message}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Exit 2 for a user's mistake, 1 for a failure, 75 for work to be continued, 130 for Ctrl-C.

    A bug keeps its traceback (1).
    """
    try:
        yield
    except ToldElsewhereError as error:
        sys.exit(error.code)
    except UserError as error:
        fail(str(error), 2)
    except ValidationError as error:
        places = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        fail("; ".join(f"{place}: {message}" for place, message in places), 2)
    except UnfinishedError as stop:
        print(f"pixart: {stop}", file=sys.stderr)
        sys.exit(UNFINISHED)
    except PixartError as error:
        fail(str(error), 1)
    except KeyboardInterrupt as stop:
        about = f" ({stop})" if str(stop) else ""
        print(f"pixart: interrupted, work so far is kept{about}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        raise
    except OSError as error:
        what = error.strerror or str(error) or type(error).__name__
        fail(f"{error.filename}: {what}" if error.filename else what, 1)
    except RuntimeError as error:
        # torch.OutOfMemoryError, without importing torch.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        fail(f"out of device memory, choose a smaller batch size ({str(error).splitlines()[0]})", 1)
