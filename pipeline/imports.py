"""Imports of heavy packages without Python's garbage collector, which finds nothing in them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is searched for garbage meanwhile, and what was made is never searched again.

    torch brings half a million objects that all stay, and the collector walks through them whenever
    a quarter more have come, and once more at the end: 0.6 of the 4.3 s of CPU of a short run.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
