"""Blocks of images, decoded in worker processes: what is loaded here is all that they import."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.pixels import UnreadableImage, decode


class Block(NamedTuple):
    """Rows start, start + 1, ... as pixels.

    pixels      (B, n, n, 3) uint8; zeros where an image is unreadable
    unreadable  {row: reason}
    turned      how many carry an EXIF orientation other than upright
    """

    start: int
    pixels: np.ndarray
    unreadable: dict[int, str]
    turned: int


@dataclass(frozen=True)
class PixelBlocks:
    """The images of a tree in blocks of `batch` rows; block k is rows k * batch and on.

    Blocks are fixed by row number, whatever is left to do: a feature's last bits depend on which
    images it was encoded with, and a resumed extraction is to end with the same bytes.
    """

    root: Path
    paths: tuple[str, ...]
    resolution: int
    batch: int

    def __len__(self) -> int:
        """The number of blocks."""
        return -(-len(self.paths) // self.batch)

    def __getitem__(self, number: int) -> Block:
        """Block `number`; a bad image becomes an entry in `unreadable`, never an exception."""
        start = number * self.batch
        paths = self.paths[start : start + self.batch]
        pixels = np.zeros((len(paths), self.resolution, self.resolution, 3), np.uint8)
        unreadable, turned = {}, 0
        for place, path in enumerate(paths):
            try:
                pixels[place], is_turned = decode(self.root / path, self.resolution)
                turned += is_turned
            except UnreadableImage as error:
                unreadable[start + place] = error.reason
        return Block(start, pixels, unreadable, turned)


def start_worker(_: int) -> None:
    """Leaves signals to the parent process, which ends its workers when it has saved its rows.

    Ctrl-C and a cluster's scheduler send theirs to every process of the job.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
