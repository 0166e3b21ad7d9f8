"""The protocol of a process that decodes images for another: jobs on stdin, pixels on stdout."""

import json
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pipeline.encoder.pixels import Limits, UnreadableImage, decode

# One message per image: its kind, and the length of the bytes that follow. No pickle: a decoder
# taken over by a hostile file can only answer with wrong pixels.
HEAD = struct.Struct("<BI")
READY, UPRIGHT, TURNED, BAD = range(4)


class Decoded(NamedTuple):
    """One decoded image.

    pixels  (n, n, 3) uint8; None where the image is unreadable
    turned  whether its EXIF orientation is other than upright
    reason  why it is unreadable, on one line
    """

    pixels: np.ndarray | None
    turned: bool = False
    reason: str = ""


def read_image(file: str | Path, resolution: int, limits: Limits) -> Decoded:
    """pixels.decode of one file; an unreadable image gives a reason, never an exception."""
    try:
        return Decoded(*decode(Path(file), resolution, limits))
    except UnreadableImage as error:
        return Decoded(None, reason=error.reason)


def serve() -> None:
    """Answer the jobs on stdin until it ends, as it does when the asking process ends."""
    # What libraries print goes to stderr; stdout carries only pixels.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _write(answers, READY, b"")
        for line in sys.stdin.buffer:
            resolution, limits, files = json.loads(line)
            for file in files:
                one = read_image(file, resolution, Limits(*limits))
                if one.pixels is None:
                    _write(answers, BAD, one.reason.encode("utf-8", "replace"))
                else:
                    _write(answers, TURNED if one.turned else UPRIGHT, one.pixels.data)
    except BrokenPipeError:
        pass  # the asking process has ended
    os._exit(0)  # there is nothing to clean up, and flushing a broken pipe would raise


def ask(process: IO[bytes], files: Sequence[str], resolution: int, limits: Limits) -> None:
    """Send one job to the stdin of a process that runs `serve`."""
    process.write(json.dumps([resolution, limits, list(files)]).encode() + b"\n")
    process.flush()


def wait_until_ready(process: IO[bytes]) -> None:
    """Return when `serve` has begun; raises EOFError if it has ended instead."""
    _read(process)


def answers(process: IO[bytes], resolution: int) -> Iterator[Decoded]:
    """Yield the images of the jobs sent, in order; raises EOFError when the process has ended."""
    while True:
        kind, body = _read(process)
        if kind == BAD:
            yield Decoded(None, reason=body.decode("utf-8", "replace"))
        else:
            square = np.frombuffer(body, np.uint8).reshape(resolution, resolution, 3)
            yield Decoded(square, kind == TURNED)


def _write(stream: IO[bytes], kind: int, body: bytes | memoryview) -> None:
    stream.write(HEAD.pack(kind, memoryview(body).nbytes))
    stream.write(body)
    stream.flush()


def _read(stream: IO[bytes]) -> tuple[int, bytes]:
    kind, size = HEAD.unpack(_exactly(stream, HEAD.size))
    return kind, _exactly(stream, size)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError("the process that decodes images has ended")
    return found
