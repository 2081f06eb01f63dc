"""Reads ahead: a thread prepares the next micro-batches while the step before them runs."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

DEPTH = 2  # batches that wait or are being made; with captions of T5 one holds hundreds of megabytes


class ReadAhead(Generic[T]):
    """The batches of each step, made in a thread at most `DEPTH` batches before they are asked for.

    They are the same batches in the same order as without it: `make` is called for one step after the
    other, in one thread at a time. Asking for another step than the next (after going back to an earlier
    state) begins there anew. What `make` raises is raised where the batch is asked for.

    Use as a context manager, or call `close`: the thread ends then, and in any case with the process.
    """

    def __init__(self, make: Callable[[int], Iterable[T]], stop: int, *, threaded: bool = True) -> None:
        """Steps before `stop` are made by `make(step)`; none before the first is asked for.

        Args:
            threaded: else each batch is made when it is asked for.
        """
        self._make = make
        self._threaded = threaded
        self._stop = stop
        self._next = -1
        self._lap: _Lap[T] | None = None

    def step(self, number: int) -> Iterator[T]:
        """The batches of step `number`."""
        assert number < self._stop, f"step {number} of {self._stop}"
        if not self._threaded:
            yield from self._make(number)
            return
        if self._lap is None or number != self._next:
            self.close()
            self._lap = _Lap(self._make, number, self._stop)
        self._next = -1  # until all are taken: a step that failed half-way begins anew
        yield from self._lap.take_step()
        self._next = number + 1

    def close(self) -> None:
        """End the thread; what it holds is given up."""
        if self._lap is not None:
            self._lap.end()
            self._lap = None

    def __enter__(self) -> "ReadAhead[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _EndOfStep:
    pass


class _Lap(Generic[T]):
    """One thread and the steps from `first` on."""

    def __init__(self, make: Callable[[int], Iterable[T]], first: int, stop: int) -> None:
        self._make = make
        self._steps = range(first, stop)
        self._room = threading.Semaphore(DEPTH)
        self._ended = False
        self._made: queue.SimpleQueue[T | _EndOfStep | Exception] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
        self._start()

    def _start(self) -> None:
        threads, self._started = torch.get_num_threads(), threading.Event()
        self._thread.start()
        self._started.wait()
        torch.set_num_threads(threads)  # what the thread sets for itself, threads to come would begin with

    def take_step(self) -> Iterator[T]:
        while not isinstance(item := self._made.get(), _EndOfStep):
            if isinstance(item, Exception):
                raise item
            self._room.release()
            yield item

    def end(self) -> None:
        self._ended = True
        self._room.release()
        self._thread.join()

    def _run(self) -> None:
        # For this thread only: its operations are small, and the cores belong to the step that runs.
        torch.set_num_threads(1)
        self._started.set()
        try:
            for number in self._steps:
                if not self._make_step(number):
                    return
        except Exception as error:
            self._made.put(error)

    def _make_step(self, number: int) -> bool:
        """Whether to go on with the next step."""
        batches = iter(self._make(number))
        while True:
            self._room.acquire()
            if self._ended:
                return False
            try:
                batch = next(batches)
            except StopIteration:
                self._room.release()
                self._made.put(_EndOfStep())
                return True
            self._made.put(batch)
            del batch  # held by who takes it alone
