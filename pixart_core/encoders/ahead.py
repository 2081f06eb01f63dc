"""Work done ahead in threads: decoding pictures beside the GPU, or encoding them on the cores of a CPU."""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_WORKERS = 16  # their results wait in memory


def workers() -> int:
    """Threads for this process: the cores that it may use, shared with the other processes of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], count: int | None = None
) -> Iterator[Result]:
    """`map` in `count` threads (default: `workers`), in order, never more than a few results ahead."""
    count = count or workers()
    pool = ThreadPoolExecutor(count)
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Each operation on one core: with `map_ahead` around it, faster for short ones.

    It also makes sums independent of how many cores there are, so that equal runs give equal bytes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
