"""Rows of images to rows of features: decoding, encoding and writing go on at the same time."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from cache.store import OK, UNREADABLE, Writer
from pipeline.blocks import PixelBlocks, start_worker
from pipeline.clip_model import ClipModel, encode_images
from pipeline.config import ConfigError
from pipeline.image_tree import DataError, ImageTree

FLUSH_SECONDS = 1.0  # what a kill can cost; a flush is two fsyncs, about 10 ms on an ordinary disk
WAITING = 4  # batches encoded and not written yet
NAMED = 3  # bad images named in an error


@dataclass(frozen=True)
class Pace:
    """Where the time goes: seconds by part, added up as the work is done."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(frozen=True)
class Decoder:
    """Worker processes that wait for numbers of blocks to appear in `todo`."""

    loader: DataLoader
    todo: list[int]
    batch: int


@dataclass(frozen=True)
class Encoded:
    """What encode_rows did: images encoded, images with an EXIF turn, {path: why unreadable}."""

    images: int
    turned: int
    unreadable: dict[str, str]


def start_decoder(tree: ImageTree, clip: ClipModel, batch: int, workers: int | None) -> Decoder:
    """Start the workers now; they are idle until encode_rows.

    A forked worker holds every file its parent had open, and would keep a cache locked for the
    seconds it takes to notice that the parent was killed. So they start before any is opened.
    """
    blocks, todo = PixelBlocks(tree.root, tree.paths, clip.resolution, batch), []
    workers = min(_cores() if workers is None else workers, len(blocks))
    loader = DataLoader(
        blocks,
        batch_size=None,  # an item is a block already
        sampler=todo,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        pin_memory=clip.device.type == "cuda",
    )
    iter(loader)  # starts them, on an empty list
    return Decoder(loader, todo, batch)


def encode_rows(
    decoder: Decoder, clip: ClipModel, tree: ImageTree, writer: Writer, pace: Pace, *, skip: bool
) -> Encoded:
    """Encode the rows that `writer` has to do and put their features into it.

    skip  an unreadable image becomes a row without features; otherwise it ends the extraction

    Raises DataError naming the first unreadable images, or when a worker is killed from outside;
    ConfigError when a batch is too large for the GPU. What was encoded before stays in the writer.
    """
    todo = np.zeros(len(tree.paths), bool)
    todo[writer.todo] = True
    decoder.todo[:] = np.unique(np.flatnonzero(todo) // decoder.batch).tolist()
    images, turned, unreadable = 0, 0, {}
    pending: deque[Future] = deque()
    flushed = time.perf_counter()
    with (
        pace.part("rows"),
        _errors_in_words(decoder.batch),
        ThreadPoolExecutor(1, "write") as thread,
        _progress(int(todo.sum())) as bar,
    ):
        blocks = iter(decoder.loader)
        while True:
            with pace.part("waiting for pixels"):
                block = next(blocks, None)
            if block is None:
                break
            rows = np.arange(block.start, block.start + len(block.pixels))
            new = todo[rows]
            status = np.array([UNREADABLE if row in block.unreadable else OK for row in rows])
            bad = {tree.paths[row]: block.unreadable[row] for row in rows[new & (status != OK)]}
            if bad and not skip:
                raise _bad_images(bad, tree)
            with pace.part("encoding"):
                features = encode_images(clip, block.pixels).numpy()
            with pace.part("waiting for the disk"):
                pending.append(thread.submit(writer.put, rows[new], features[new], status[new]))
                if time.perf_counter() - flushed > FLUSH_SECONDS:
                    pending.append(thread.submit(writer.flush))
                    flushed = time.perf_counter()
                while len(pending) > WAITING:
                    pending.popleft().result()
            images += int((status[new] == OK).sum())
            turned += block.turned
            unreadable |= bad
            bar.update(int(new.sum()))
        for written in pending:
            written.result()
    return Encoded(images, turned, unreadable)


@contextlib.contextmanager
def _errors_in_words(batch: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"--batch {batch} does not fit into the GPU's memory; halve it"
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a process that decodes images was killed from outside, mostly for want of memory or "
            "shared memory (/dev/shm); pass a smaller --batch, fewer --workers, or --workers 0"
        ) from error


def _progress(rows: int) -> tqdm:
    # Beyond a terminal every update is a line of a log.
    often = 0.1 if sys.stderr.isatty() else 10
    return tqdm(total=rows, unit=" images", file=sys.stderr, mininterval=often, desc="extract")


def _bad_images(bad: dict[str, str], tree: ImageTree) -> DataError:
    named = "; ".join(f"{tree.root / path}: {why}" for path, why in list(bad.items())[:NAMED])
    more = f"; and {len(bad) - NAMED} more nearby" if len(bad) > NAMED else ""
    return DataError(
        f"{named}{more}; mend or remove it, or pass --on-bad-image skip to leave such rows without "
        "features (what is encoded so far is kept for that)"
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux; a container's share can be less than all cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
