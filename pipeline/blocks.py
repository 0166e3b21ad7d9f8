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
class Images:
    """The images of a tree, which a DataLoader asks for by ranges of rows."""

    root: Path
    paths: tuple[str, ...]
    resolution: int

    def __getitem__(self, rows: range) -> Block:
        """These rows; a bad image becomes an entry in `unreadable`, never an exception."""
        pixels = np.zeros((len(rows), self.resolution, self.resolution, 3), np.uint8)
        unreadable, turned = {}, 0
        for place, row in enumerate(rows):
            try:
                pixels[place], is_turned = decode(self.root / self.paths[row], self.resolution)
                turned += is_turned
            except UnreadableImage as error:
                unreadable[row] = error.reason
        return Block(rows.start, pixels, unreadable, turned)


def start_worker(_: int) -> None:
    """Leaves signals to the parent process, which ends its workers when it has saved its rows.

    Ctrl-C and a cluster's scheduler send theirs to every process of the job.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
