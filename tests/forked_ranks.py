"""Launches of several processes by fork, as torchrun makes them, without importing torch in each."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator


def fork_ranks(count: int, work: Callable[[int], None]) -> list[int]:
    """Exit codes (minus the signal's number if killed) of `count` processes that do `work(rank)` and meet.

    They are a process group of their own: one of them can end all (`os.killpg(0, ...)`).
    """
    with _meeting_point() if count > 1 else contextlib.nullcontext(0) as port:
        children: list[int] = []
        for rank in range(count):
            child = _fork(lambda rank=rank: _work(work, rank, count, port), children[0] if children else 0)
            children.append(child)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _fork(work: Callable[[], None], group: int = 0) -> int:
    child = os.fork()
    with contextlib.suppress(OSError):  # by both, so that it is done whoever comes first
        os.setpgid(child, group or child)
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(work: Callable[[int], None], rank: int, count: int, port: int) -> None:
    if count > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
    work(rank)


@contextlib.contextmanager
def _meeting_point() -> Iterator[int]:
    """The port of a store; it belongs to this launch from the moment it is chosen.

    In a process of its own: the store has a thread, and a process with threads should not fork.
    """
    told, tell = os.pipe()
    wait, held = os.pipe()

    def serve() -> None:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.close(held)
        os.write(tell, str(store.port).encode())
        os.read(wait, 1)  # until nobody is left who could need it

    child = _fork(serve)
    os.close(tell)
    os.close(wait)
    try:
        yield int(os.read(told, 16))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(held)
