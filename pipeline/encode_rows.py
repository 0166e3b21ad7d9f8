"""Rows of images to rows of features: decoding, encoding and writing go on at the same time."""

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader

from cache.store import OK, UNREADABLE, Writer
from pipeline.blocks import Block, Images, start_worker
from pipeline.clip_model import ClipModel, encode_images
from pipeline.config import ConfigError
from pipeline.cores import cores
from pipeline.image_tree import DataError, ImageTree
from pipeline.progress import progress_bar
from pipeline.signals import Interrupted, noted_signals

FLUSH_SECONDS = 1.0  # what a kill can cost; a flush is two fsyncs, about 10 ms on an ordinary disk
# A worker hands over several small blocks at once: on the CPU, where a block is 16 images, that
# takes 8 % less processor time than one by one for the built-in data (0.12 ms an image).
IMAGES_AT_ONCE = 64
SHARES = 4  # of what is to do, at least, that each worker gets in turn
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
class Encoded:
    """What encode_rows did: images encoded, images with an EXIF turn, {path: why unreadable}."""

    images: int
    turned: int
    unreadable: dict[str, str]


def encode_rows(
    clip: ClipModel,
    tree: ImageTree,
    writer: Writer,
    pace: Pace,
    *,
    batch: int,
    workers: int | None,
    skip: bool,
) -> Encoded:
    """Encode the rows that `writer` has to do and put their features into it.

    batch    images encoded together
    workers  processes that decode; 0: this one does; None: one a core
    skip     an unreadable image becomes a row without features; otherwise it ends the extraction

    Raises DataError naming the first unreadable images, or when a worker is killed from outside;
    ConfigError when a batch is too large for the GPU; Interrupted after SIGINT or SIGTERM and the
    block at hand. What was encoded before stays in the writer.
    """
    todo = np.zeros(len(tree.paths), bool)
    todo[writer.todo] = True
    images, turned, unreadable = 0, 0, {}
    written: deque[Future] = deque()
    flushed = time.perf_counter()
    with (
        pace.part("rows"),
        _errors_in_words(batch),
        progress_bar(
            total=int(todo.sum()), unit=" images", desc="extract", seconds=10, leave=True
        ) as bar,
        ThreadPoolExecutor(1, "write") as disk,
        _decode(tree, clip, np.unique(writer.todo // batch).tolist(), batch, workers) as blocks,
        contextlib.closing(_encode(blocks, clip, pace)) as encoded,
        noted_signals() as stop,
    ):
        for block, features in encoded:
            rows = np.arange(block.start, block.start + len(features))
            new = todo[rows]
            status = np.array([UNREADABLE if row in block.unreadable else OK for row in rows])
            bad = {tree.paths[row]: block.unreadable[row] for row in rows[new & (status != OK)]}
            if bad and not skip:
                raise _bad_images(bad, tree)
            written.append(disk.submit(writer.put, rows[new], features[new], status[new]))
            if time.perf_counter() - flushed > FLUSH_SECONDS:
                written.append(disk.submit(writer.flush))
                flushed = time.perf_counter()
            with pace.part("waiting for the disk"):
                while len(written) > WAITING:
                    written.popleft().result()
            images += int((status[new] == OK).sum())
            turned += block.turned
            unreadable |= bad
            bar.update(int(new.sum()))
            if stop:
                raise Interrupted("stopped", stop[0])
        for one in written:
            one.result()
    return Encoded(images, turned, unreadable)


@contextlib.contextmanager
def _decode(
    tree: ImageTree, clip: ClipModel, numbers: list[int], batch: int, workers: int | None
) -> Iterator[Iterator[Block]]:
    """The blocks of these numbers, in order, from processes that end with the context."""
    workers = min(cores() if workers is None else workers, len(numbers))
    most = min(IMAGES_AT_ONCE, len(numbers) * batch // (SHARES * max(workers, 1)))
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; here a child uses Pillow and numpy only.
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        parcels = iter(
            DataLoader(
                Images(tree.root, tree.paths, clip.resolution),
                batch_size=None,  # an item is a block or several already
                sampler=row_ranges(numbers, batch, len(tree.paths), most),
                num_workers=workers,
                worker_init_fn=start_worker,
                pin_memory=clip.device.type == "cuda",
            )
        )
    try:
        yield (block for parcel in parcels for block in _split(parcel, batch))
    finally:
        if workers:
            # Left to the garbage collector after an error, each worker takes 5 seconds to end.
            parcels._shutdown_workers()


def row_ranges(numbers: list[int], batch: int, rows: int, most: int) -> list[range]:
    """The rows of blocks, whose numbers ascend; neighbours go together up to `most` rows.

    Block k is rows k * batch and on, whatever is left to do: a feature's last bits depend on which
    images it was encoded with, and a resumed extraction is to end with the same bytes.
    """
    ranges: list[range] = []
    for number in numbers:
        start, stop = number * batch, min(number * batch + batch, rows)
        if ranges and ranges[-1].stop == start and stop - ranges[-1].start <= most:
            ranges[-1] = range(ranges[-1].start, stop)
        else:
            ranges.append(range(start, stop))
    return ranges


def _split(parcel: Block, batch: int) -> Iterator[Block]:
    """The blocks in one handing over; the first one has the count of turned images of all."""
    for begin in range(0, len(parcel.pixels), batch):
        start, pixels = parcel.start + begin, parcel.pixels[begin : begin + batch]
        bad = {r: why for r, why in parcel.unreadable.items() if start <= r < start + len(pixels)}
        yield Block(start, pixels, bad, 0 if begin else parcel.turned)


def _encode(
    blocks: Iterator[Block], clip: ClipModel, pace: Pace
) -> Iterator[tuple[Block, np.ndarray]]:
    """Every block with its (B, D) features, in order.

    On the CPU a block is one thread's work, and there are as many threads as torch would use: with
    one block over all of them, each layer waits for the slowest, which the decoders interrupt.
    Measured on 2 busy cores: ViT-B/32 10 instead of 5 images/s, small models 10 to 100 times more.
    """
    threads = torch.get_num_threads()
    at_once = threads if clip.device.type == "cpu" else 1
    ahead: deque[tuple[Block, Future]] = deque()
    try:
        with ThreadPoolExecutor(at_once, "encode", torch.set_num_threads, (1,)) as encoders:
            more = True
            while more or ahead:
                if more and len(ahead) <= at_once:
                    with pace.part("waiting for pixels"):
                        block = next(blocks, None)
                    if more := block is not None:
                        ahead.append((block, encoders.submit(encode_images, clip, block.pixels)))
                    continue
                block, features = ahead.popleft()
                with pace.part("waiting for the encoder"):
                    found = features.result().numpy()
                yield block, found
    finally:
        torch.set_num_threads(threads)  # some of its libraries share the setting among threads


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


def _bad_images(bad: dict[str, str], tree: ImageTree) -> DataError:
    named = "; ".join(f"{tree.root / path}: {why}" for path, why in list(bad.items())[:NAMED])
    more = f"; and {len(bad) - NAMED} more nearby" if len(bad) > NAMED else ""
    return DataError(
        f"{named}{more}; mend or remove it, or pass --on-bad-image skip to leave such rows without "
        "features (what is encoded so far is kept for that)"
    )
