"""Lanes shared out to threads, with BLAS held to one thread each."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import ThreadpoolController


def run_all(work: Callable, items: Iterable, scratch: Callable[[], object]) -> None:
    """work(item, scratch) for every item, on as many threads as torch uses; first come, first run.

    work must release the interpreter's lock. Each thread owns one scratch. BLAS gets one thread,
    so that what is computed for an item does not depend on how many others there are.
    """
    items = list(items)
    count = min(torch.get_num_threads(), len(items))
    with _controller().limit(limits=1, user_api="blas"):
        if count <= 1:
            own = scratch()
            for item in items:
                work(item, own)
            return
        queue = iter(items)  # next() on a list's iterator is atomic

        def drain() -> None:
            # Of this thread alone. A diverged lane's denormals would slow it 20-fold.
            torch.set_flush_denormal(True)
            own = scratch()
            for item in queue:
                work(item, own)

        with ThreadPoolExecutor(count) as pool:
            for future in [pool.submit(drain) for _ in range(count)]:
                future.result()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Holds torch and BLAS to this thread: for products of a few hundred rows.

    Beside a busy neighbour two threads wait for each other: a report took 2 s instead of 0.2.
    """
    with _controller().limit(limits=1):
        yield


@functools.cache
def _controller() -> ThreadpoolController:
    # numba's np.dot calls scipy's own copy of OpenBLAS. The controller only reaches libraries that
    # are loaded when it is made.
    import scipy.linalg.cython_blas  # noqa: F401

    return ThreadpoolController()
