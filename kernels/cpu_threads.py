"""Lanes, and blocks of rows, shared out to threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch


def run_all(work: Callable, items: Iterable, scratch: Callable[[], object]) -> None:
    """work(item, scratch) for every item, on as many threads as torch uses; first come, first run.

    work must release the interpreter's lock, and what it computes for an item must not depend on
    what its scratch held before. Each thread owns one scratch.
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
    with ThreadPoolExecutor(max(1, count)) as pool:
        for future in [pool.submit(drain) for _ in range(count)]:
            future.result()
