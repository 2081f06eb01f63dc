"""One line for a failure of several processes: which one failed, why, and what to do.

When a process fails, the others notice in the next collective operation. Each posts what happened to it on a
board that all reach, a small store at the address where they met; the first of those that are left speaks.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import torch
from torch.distributed import DistError, TCPStore

from pixart_core.errors import PixartError, ToldElsewhereError, UnfinishedError, UserError

P = ParamSpec("P")
Result = TypeVar("Result")
Kind = Literal["mistake", "failure", "unfinished", "interrupt", "bug", "lost"]

PATIENCE = 5.0  # seconds that a process waits for what others have to say
CODES: dict[Kind, int] = {
    "mistake": 2, "failure": 1, "unfinished": 75, "interrupt": 130, "bug": 1, "lost": 1
}  # fmt: skip
# How torch names a connection that broke; both are plain RuntimeErrors.
LOST_SIGNS = ("gloo/transport", "NCCL")
AGREED = ("unfinished", "interrupt")


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        kind: lost: another process is gone, and this one cannot go on without it.
    """

    kind: Kind
    message: str

    @classmethod
    def of(cls, error: BaseException) -> "Ending":
        """What `error` says."""
        kinds: tuple[tuple[type[BaseException], Kind], ...] = (
            (UserError, "mistake"),
            (UnfinishedError, "unfinished"),
            (PixartError, "failure"),
            (KeyboardInterrupt, "interrupt"),
            (DistError, "lost"),
        )
        for base, kind in kinds:
            if isinstance(error, base):
                return cls(kind, str(error))
        if isinstance(error, OSError):
            return cls("failure", f"{error.filename or type(error).__name__}: {error.strerror or error}")
        lost = isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_SIGNS)
        return cls("lost" if lost else "bug", f"{type(error).__name__}: {error}")


class Board(Protocol):
    """Where processes post how they ended."""

    def post(self, rank: int, ending: Ending) -> None:
        """Tell the others."""

    def read(self, rank: int) -> Ending | None:
        """What a process told; None if it has not."""


class StoreBoard:
    """A board in the store at MASTER_ADDR and MASTER_PORT, where the processes met."""

    def __init__(self) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = datetime.timedelta(seconds=PATIENCE)
        self.store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)

    def post(self, rank: int, ending: Ending) -> None:
        self.store.set(f"pixart/ending/{rank}", json.dumps(dataclasses.asdict(ending)))

    def read(self, rank: int) -> Ending | None:
        key = f"pixart/ending/{rank}"
        return Ending(**json.loads(self.store.get(key))) if self.store.check([key]) else None


def told_once(function: Callable[P, Result]) -> Callable[P, Result]:
    """Of a function that all processes of a launch call: an error is raised for the person in one of them.

    The others raise `ToldElsewhereError`. Alone, errors are as they are.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Result:
        rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return function(*args, **kwargs)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            with _deaf():
                told = in_one_voice(error, rank, count, StoreBoard)
            if told is error:
                raise
            raise told from error
        # Python may not end while threads of the process group still run.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        return result

    return wrapped


def in_one_voice(
    error: BaseException, rank: int, count: int, open_board: Callable[[], Board]
) -> BaseException:
    """What process `rank` of `count` shall raise instead of `error`."""
    own = Ending.of(error)
    if own.kind in AGREED and own.message:  # every process ends so, after the same step
        return error if rank == 0 else ToldElsewhereError(CODES[own.kind])
    try:
        board = open_board()
        board.post(rank, own)
        _let_go()
        endings = _listen(own, rank, count, board)
    except (DistError, KeyError):  # the store is gone, and the first process or its machine with it
        return PixartError(lost_line([0], count)) if own.kind == "lost" else error
    before = [endings[other] for other in endings if other < rank]
    if own.kind == "bug" and own not in before:
        return error  # its traceback is of use
    if before:
        return ToldElsewhereError(CODES[own.kind])
    return error if own.kind != "lost" else _reason(endings, count)


def lost_line(ranks: list[int], count: int) -> str:
    """What the person reads of processes that are gone without a word."""
    names = ", ".join(str(rank) for rank in ranks)
    which = f"rank {names} of {count} is" if len(ranks) == 1 else f"ranks {names} of {count} are"
    return (
        f"{which} gone without a word (killed, out of memory, or the machine is down), so all ended; "
        "work so far is kept: run the same command to continue"
    )


def _listen(own: Ending, rank: int, count: int, board: Board) -> dict[int, Ending]:
    """What the processes told, as soon as it is enough to know who speaks, and of what."""
    endings = {rank: own}
    deadline = time.monotonic() + PATIENCE
    while True:
        for other in range(count):
            if other not in endings and (ending := board.read(other)) is not None:
                endings[other] = ending
        explained = any(ending.kind != "lost" for ending in endings.values())
        enough = explained if rank == 0 else any(other < rank for other in endings)
        if enough or len(endings) == count or time.monotonic() > deadline:
            return endings
        time.sleep(0.05)


def _reason(endings: dict[int, Ending], count: int) -> BaseException:
    """Why this process lost the others: what one of them told, or who told nothing."""
    for rank, ending in sorted(endings.items()):
        told = f"rank {rank} of {count}: {ending.message}"
        if ending.kind == "mistake":
            return UserError(told)
        if ending.kind == "bug":
            return PixartError(f"{told} (its traceback is above); work so far is kept")
        if ending.kind == "interrupt":
            return KeyboardInterrupt(f"in rank {rank} of {count}")
        if ending.kind != "lost":
            return PixartError(told)
    silent = [rank for rank in range(count) if rank not in endings]
    if not silent:
        return PixartError("the connection between the processes broke; run the same command to continue")
    return PixartError(lost_line(silent, count))


def _let_go() -> None:
    """Close the connections, so that those who wait for this process notice.

    Only gloo's: NCCL would wait for those who are gone.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ignore SIGTERM: launchers send it to all who are left, who have something to say first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
