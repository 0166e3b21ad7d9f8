"""Lanes, and blocks of rows, shared out to threads, with BLAS held to one thread each."""

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import ThreadpoolController


def run_all(work: Callable, items: Iterable, scratch: Callable[[], object]) -> None:
    """work(item, scratch) for every item, on as many threads as torch uses; first come, first run.

    work must release the interpreter's lock, and what it computes for an item must not depend on
    what its scratch held before. Each thread owns one scratch. BLAS, for kernels with np.dot, gets
    one thread, so that what is computed for an item does not depend on how many others there are.
    """
    items = list(items)
    queue = iter(items)  # next() on a list's iterator is atomic

    def drain() -> None:
        # Of this thread alone; also where there is but one, so that results do not depend on how
        # many there are. A diverged lane's denormals would slow it 20-fold.
        torch.set_flush_denormal(True)
        own = scratch()
        for item in queue:
            work(item, own)

    count = min(torch.get_num_threads(), len(items))
    limit = _controller().limit(limits=1, user_api="blas")
    with limit, ThreadPoolExecutor(max(1, count)) as pool:
        for future in [pool.submit(drain) for _ in range(count)]:
            future.result()


@functools.cache
def _controller() -> ThreadpoolController:
    # numba's np.dot calls scipy's own copy of OpenBLAS. The controller only reaches libraries that
    # are loaded when it is made.
    import scipy.linalg.cython_blas  # noqa: F401

    return ThreadpoolController()
