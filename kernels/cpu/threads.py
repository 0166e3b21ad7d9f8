"""Distribution of lanes, or blocks of rows, over threads."""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Scratch = TypeVar("Scratch")

_kept: ContextVar[int | None] = ContextVar("threads of run_all", default=None)


@contextmanager
def kernels_alone() -> Iterator[int]:
    """Inside it, run_all uses all of torch's threads, and torch's own operations use one.

    Yields the number of threads.

    Between kernels, torch only copies and adds a few adapters. On two threads each such operation
    ends in a barrier at which OpenMP spins: with other work on a 2-core machine, the mean of three
    adapters took 73 ms instead of 0.2, and a round 1.23 s of CPU instead of 0.94.
    """
    before, count = torch.get_num_threads(), thread_count()
    token = _kept.set(count)
    torch.set_num_threads(1)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
        _kept.reset(token)


def thread_count() -> int:
    """The number of threads that kernels may use."""
    return _kept.get() or torch.get_num_threads()


def run_all(
    work: Callable[[Item, Scratch], object],
    items: Iterable[Item],
    scratch: Callable[[], Scratch],
    spare: list[Scratch] | None = None,
) -> None:
    """work(item, scratch) for every item, on torch's number of threads, in order of items.

    work must release the GIL, and its result for an item must not depend on what scratch held
    before. Each thread owns one scratch: one taken from `spare`, and returned to it, or a new one.
    """
    items = list(items)
    queue = iter(items)  # next() on a list's iterator is atomic

    def drain() -> None:
        # Affects this thread only; set even if it is the only one, so that results do not depend on
        # their number. A diverged lane's denormals would slow it down 20-fold.
        torch.set_flush_denormal(True)
        own = _take(spare) or scratch()
        for item in queue:
            work(item, own)
        if spare is not None:
            spare.append(own)

    count = min(thread_count(), len(items))
    with ThreadPoolExecutor(max(1, count)) as pool:
        for future in [pool.submit(drain) for _ in range(count)]:
            future.result()


def _take(spare: list[Scratch] | None) -> Scratch | None:
    try:
        return spare.pop() if spare else None
    except IndexError:  # another thread took the last one
        return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch and BLAS to this thread: for products of a few hundred rows.

    Next to a busy neighbour, two threads wait for each other: a report took 2 s instead of 0.2.
    """
    with _controller().limit(limits=1):
        yield


@functools.cache
def _controller() -> ThreadpoolController:
    # It only controls libraries loaded before it is created; scipy has a BLAS of its own.
    import scipy.linalg.cython_blas  # noqa: F401

    return ThreadpoolController()
