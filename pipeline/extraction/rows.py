"""Rows of images to rows of features: decoding, encoding and writing at the same time."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache.store import OK, UNREADABLE, Writer
from pipeline.datasets.tree import ImageTree
from pipeline.encoder.blocks import Decoded
from pipeline.encoder.decoding import decoded_images
from pipeline.encoder.model import ClipModel, encode_images
from pipeline.encoder.pixels import IMAGE_LIMITS, Limits
from pipeline.errors import ConfigError, DataError, Interrupted
from pipeline.machine import cores
from pipeline.progress import progress_bar
from pipeline.signals import noted_signals

FLUSH_SECONDS = 1.0  # what a kill can cost; a flush is two fsyncs, about 10 ms on an ordinary disk
AHEAD = 2  # batches decoded before the encoder asks for them
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


class Block(NamedTuple):
    """Rows start, start + 1, ... as pixels.

    pixels      (B, n, n, 3) uint8; zeros where an image is unreadable
    unreadable  {row: reason}
    turned      how many carry an EXIF orientation other than upright
    """

    start: int
    pixels: Tensor
    unreadable: dict[int, str]
    turned: int


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
    limits: Limits = IMAGE_LIMITS,
) -> Encoded:
    """Encode the rows that `writer` has to do and put their features into it.

    batch    images encoded together
    workers  processes that decode; 0: this one does; None: one a core
    skip     an unreadable image becomes a row without features; otherwise it ends the extraction
    limits   what one image may cost; one that costs more is unreadable

    Raises DataError naming the first unreadable images, or when workers are killed from outside;
    ConfigError when a batch is too large for the GPU; Interrupted after SIGINT or SIGTERM and the
    block at hand. What was encoded before stays in the writer.
    """
    todo = np.zeros(len(tree.paths), bool)
    todo[writer.todo] = True
    blocks = row_blocks(np.unique(writer.todo // batch).tolist(), batch, len(tree.paths))
    count, turned, unreadable = 0, 0, {}
    written: deque[Future] = deque()
    flushed = time.perf_counter()
    with (
        pace.part("rows"),
        noted_signals() as stop,
        _errors_in_words(batch),
        progress_bar(
            total=int(todo.sum()), unit=" images", desc="extract", seconds=10, leave=True
        ) as bar,
        ThreadPoolExecutor(1, "write") as disk,
        decoded_images(
            [tree.file(row) for rows in blocks for row in rows],
            clip.resolution,
            workers=cores() if workers is None else workers,
            limits=limits,
            ahead=AHEAD * batch,
            stop=stop,
        ) as images,
        contextlib.closing(_encode(_blocks(blocks, images, clip), clip, pace)) as encoded,
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
            count += int((status[new] == OK).sum())
            turned += block.turned
            unreadable |= bad
            bar.update(int(new.sum()))
            if stop:
                raise Interrupted("stopped", stop[0])
        for one in written:
            one.result()
    return Encoded(count, turned, unreadable)


def row_blocks(numbers: Sequence[int], batch: int, rows: int) -> list[range]:
    """The rows of blocks: of block k, k * batch and on, whatever is left to do.

    A feature's last bits depend on which images it was encoded with, and a resumed extraction is to
    end with the same bytes.
    """
    return [range(k * batch, min(k * batch + batch, rows)) for k in numbers]


def _blocks(blocks: Sequence[range], images: Iterator[Decoded], clip: ClipModel) -> Iterator[Block]:
    """The images, which come in the order of the rows, put together to blocks."""
    size = (clip.resolution, clip.resolution, 3)
    for rows in blocks:
        pixels = torch.zeros(
            (len(rows), *size), dtype=torch.uint8, pin_memory=clip.device.type == "cuda"
        )
        places, unreadable, turned = pixels.numpy(), {}, 0
        for place, row in enumerate(rows):
            one = next(images)
            if one.pixels is None:
                unreadable[row] = one.reason
            else:
                places[place] = one.pixels
            turned += one.turned
        yield Block(rows.start, pixels, unreadable, turned)


def _encode(
    blocks: Iterator[Block], clip: ClipModel, pace: Pace
) -> Iterator[tuple[Block, np.ndarray]]:
    """Every block with its (B, D) features, in order.

    On the CPU a block is one thread's work, and there are as many threads as torch would use: with
    one block over all of them, each layer waits for the slowest, which the decoders interrupt.
    Measured on 2 busy cores: ViT-B/32 10 instead of 5 images/s, small models 10 to 100 times more.
    A GPU gets two threads with a stream each: one block is copied while another is encoded (38 MB
    at batch 256, a seventh of the time that an H200 takes to encode them; not measured yet).
    """
    threads = torch.get_num_threads()
    at_once = threads if clip.device.type == "cpu" else 2
    ahead: deque[tuple[Block, Future]] = deque()
    try:
        with ThreadPoolExecutor(at_once, "encode", _begin_encoding, (clip.device,)) as encoders:
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


def _begin_encoding(device: torch.device) -> None:
    """Settings of the calling thread: one CPU thread, on a GPU a stream of its own."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.default_stream(device))  # which copied the weights
        torch.cuda.set_stream(stream)


@contextlib.contextmanager
def _errors_in_words(batch: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"--batch {batch} does not fit into the GPU's memory; halve it"
        ) from error


def _bad_images(bad: dict[str, str], tree: ImageTree) -> DataError:
    named = "; ".join(f"{tree.root / path}: {why}" for path, why in list(bad.items())[:NAMED])
    more = f"; and {len(bad) - NAMED} more nearby" if len(bad) > NAMED else ""
    return DataError(
        f"{named}{more}; repair or delete it, or pass --on-bad-image skip to leave such rows "
        "without features (what is encoded so far is kept for that)"
    )
