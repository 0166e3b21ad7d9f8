"""Encode rows of images as rows of features: decode, encode and write concurrently."""

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

FLUSH_SECONDS = 1.0  # of work that a kill can lose; a flush is two fsyncs, 10 ms on most disks
AHEAD = 2  # batches decoded before the encoder needs them
WAITING = 4  # batches encoded but not yet written
NAMED = 3  # bad images listed in an error


@dataclass(frozen=True)
class Pace:
    """The time spent: seconds by part, added up during the work."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to `name`."""
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
    turned      how many have an EXIF orientation other than upright
    """

    start: int
    pixels: Tensor
    unreadable: dict[int, str]
    turned: int


@dataclass(frozen=True)
class Encoded:
    """The result of encode_rows: images encoded, those with an EXIF orientation, {path: reason}."""

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
    """Encode the rows that are still to do and put their features into `writer`.

    batch    images encoded together
    workers  decoding processes; 0: this process decodes; None: one per core
    skip     whether an unreadable image becomes a row without features, or ends the extraction
    limits   of one image; one that exceeds them is unreadable

    Raises DataError naming the first unreadable images, or when workers are killed from outside;
    ConfigError when a batch is too large for the GPU; Interrupted after SIGINT or SIGTERM and the
    current block. What was encoded before stays in the writer.
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
        contextlib.closing(_encode(_blocks(blocks, images, clip), clip, pace, batch)) as encoded,
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
    """The rows of each block, k * batch and following for block k, done or not.

    A feature's last bits depend on the images it is encoded with, and a resumed extraction must
    give the same bytes.
    """
    return [range(k * batch, min(k * batch + batch, rows)) for k in numbers]


def _blocks(blocks: Sequence[range], images: Iterator[Decoded], clip: ClipModel) -> Iterator[Block]:
    """Assemble blocks of the images, which come in row order."""
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
    blocks: Iterator[Block], clip: ClipModel, pace: Pace, batch: int
) -> Iterator[tuple[Block, np.ndarray]]:
    """Yield every block with its (B, D) features, in order.

    On the CPU one thread encodes a block, and there are as many threads as torch would use: with
    one block over all threads, each layer waits for the slowest, which decoders interrupt.
    Measured on 2 busy cores: ViT-B/32 10, not 5 images/s; small models 10 to 100 times faster.
    A GPU has two threads with a stream each: one block is copied while another is encoded (38 MB
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
                        ahead.append((block, encoders.submit(_features, clip, block.pixels, batch)))
                    continue
                block, features = ahead.popleft()
                with pace.part("waiting for the encoder"):
                    found = features.result().numpy()
                yield block, found
    finally:
        torch.set_num_threads(threads)  # some of torch's libraries share the setting among threads


def _features(clip: ClipModel, pixels: Tensor, batch: int) -> Tensor:
    """encode_images; a compiled model gets `batch` images, as it is compiled for each size."""
    if not clip.compiled:
        return encode_images(clip, pixels)
    padded = torch.cat([pixels, pixels.new_zeros((batch - len(pixels), *pixels.shape[1:]))])
    try:
        return encode_images(clip, padded)[: len(pixels)]
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--compile: torch cannot compile {clip.name}: {reason}") from error


def _begin_encoding(device: torch.device) -> None:
    """Set up the calling thread: one CPU thread, on a GPU a stream of its own."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.default_stream(device))  # on which the weights were copied
        torch.cuda.set_stream(stream)


@contextlib.contextmanager
def _errors_in_words(batch: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"--batch {batch} does not fit in the GPU's memory; halve it") from error


def _bad_images(bad: dict[str, str], tree: ImageTree) -> DataError:
    named = "; ".join(f"{tree.root / path}: {why}" for path, why in list(bad.items())[:NAMED])
    more = f"; and {len(bad) - NAMED} more nearby" if len(bad) > NAMED else ""
    return DataError(
        f"{named}{more}; repair or delete it, or pass --on-bad-image skip to leave such rows "
        "without features (images encoded so far are kept)"
    )
