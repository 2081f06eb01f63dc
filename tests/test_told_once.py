"""Which process speaks for all when a training fails, and what it says."""

import pytest
from torch.distributed import DistNetworkError

from pixart_core.errors import PixartError, ToldElsewhereError, UnfinishedError, UserError
from pixart_core.training import told_once
from pixart_core.training.told_once import Ending, in_one_voice

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")


class Paper:
    """A board that holds what the others have posted."""

    def __init__(self, *others: tuple[int, BaseException]) -> None:
        self.endings = {rank: Ending.of(error) for rank, error in others}

    def post(self, rank: int, ending: Ending) -> None:
        self.endings[rank] = ending

    def read(self, rank: int) -> Ending | None:
        return self.endings.get(rank)


def no_board() -> Paper:
    raise DistNetworkError("the store is gone")


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(told_once, "PATIENCE", 0.0)


@pytest.mark.parametrize(
    ("rank", "error", "others", "kind", "message"),
    [
        # Its own reason is raised as it is by the first; the same one is not told again.
        (0, UserError("wrong"), [], UserError, "^wrong$"),
        (1, UserError("wrong"), [(0, UserError("wrong"))], ToldElsewhereError, "exit code 2"),
        # Who lost the others quotes the one that knows why.
        (0, LOST, [(2, UserError("no shard"))], UserError, "^rank 2 of 4: no shard$"),
        (0, LOST, [(1, LOST), (2, PixartError("disk")), (3, LOST)], PixartError, "^rank 2 of 4: disk$"),
        (0, LOST, [(3, ZeroDivisionError("x"))], PixartError, "rank 3 of 4: ZeroDivisionError: x .*trace"),
        (0, LOST, [(3, OSError(28, "No space left", "log"))], PixartError, "rank 3 of 4: log: No space left"),
        (2, PixartError("disk"), [(0, LOST)], ToldElsewhereError, "exit code 1"),
        # Nobody told anything: those that are silent are gone.
        (0, LOST, [(1, LOST), (3, LOST)], PixartError, "rank 2 of 4 is gone without a word"),
        (1, LOST, [(3, LOST)], PixartError, "ranks 0, 2 of 4 are gone without a word"),
        (3, LOST, [(1, LOST)], ToldElsewhereError, "exit code 1"),
        (0, LOST, [(1, LOST), (2, LOST), (3, LOST)], PixartError, "connection between the processes broke"),
        # The first is gone: the next one speaks for itself.
        (1, PixartError("disk"), [], PixartError, "^disk$"),
        # A bug keeps its traceback, once.
        (2, ZeroDivisionError("x"), [(0, LOST)], ZeroDivisionError, "^x$"),
        (2, ZeroDivisionError("x"), [(0, ZeroDivisionError("x"))], ToldElsewhereError, "exit code 1"),
        # Ctrl-C of one before the training listened to it.
        (0, LOST, [(1, KeyboardInterrupt())], KeyboardInterrupt, "in rank 1 of 4"),
    ],
)
def test_one_process_speaks(rank, error, others, kind, message) -> None:
    board = Paper(*others)
    told = in_one_voice(error, rank, 4, lambda: board)
    with pytest.raises(kind, match=message):
        raise told
    assert type(told) is kind
    assert board.endings[rank] == Ending.of(error)


@pytest.mark.parametrize(
    ("error", "code"), [(UnfinishedError("saved at step 3"), 75), (KeyboardInterrupt("at step 3"), 130)]
)
def test_an_end_that_all_agreed_on_is_told_by_the_first_and_needs_nobody(error, code) -> None:
    assert in_one_voice(error, 0, 4, no_board) is error
    other = in_one_voice(error, 1, 4, no_board)
    assert isinstance(other, ToldElsewhereError)
    assert other.code == code


def test_without_a_board_everybody_speaks() -> None:
    error = UserError("wrong")
    assert in_one_voice(error, 2, 4, no_board) is error
    lost = in_one_voice(LOST, 2, 4, no_board)
    assert "rank 0 of 4 is gone" in str(lost)
