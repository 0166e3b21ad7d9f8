"""Damage: what disks, copies and strangers do to the bytes of a file, drawn by a random.Random."""

import random
import struct
from collections.abc import Callable, Sequence

TOKENS = (
    b"NaN", b"Infinity", b"-1", b"1e999", b"null", b"true", b"[]", b"{}", b'""', b"[[[[[[[[",
    b"9" * 40, b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"../", b"<script>", b"%s%n",
    b"\x89HDF\r\n\x1a\n", b"OHDR", b"TREE", b"SNOD", b"HEAP", b"BTHD", b"PK\x03\x04", b"PK\x01\x02",
    b"PK\x05\x06", b"\x93NUMPY", b"<f4", b"|O", b"F32", b"data_offsets", b"__metadata__",
    b"!!python/object:os.system", b"&a [*a]", b"*a", b"- ", b": ",
)  # fmt: skip
EXTREMES = (0, 1, -1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**40)
EXTREMES += (2**53, 2**62, 2**63 - 1, -(2**63))


def mutate(data: bytes, draw: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four kinds of damage, one after the other; others are whole files to splice from."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not found:
            found = bytearray(draw.choice(TOKENS))
        draw.choice(DAMAGE)(found, draw, others or (data,))
    return bytes(found)


def flip_bit(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """One bit, as a disk or a cosmic ray."""
    found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)


def set_byte(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """One byte becomes any other."""
    found[draw.randrange(len(found))] = draw.randrange(256)


def change_digit(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """A digit of a text becomes another: what no parser can notice."""
    digits = [at for at, byte in enumerate(found) if 48 <= byte < 58]
    if digits:
        found[draw.choice(digits)] = draw.randrange(48, 58)


def cut_short(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """The end is missing, as after a full disk."""
    del found[draw.randrange(len(found)) :]


def zero_block(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """A run of zeros, as after a power loss."""
    at = draw.randrange(len(found))
    size = min(draw.choice((1, 8, 64, 512, 4096)), len(found) - at)
    found[at : at + size] = bytes(size)


def remove_block(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """Bytes are missing in the middle."""
    at = draw.randrange(len(found))
    del found[at : at + draw.choice((1, 2, 8, 100))]


def repeat_block(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """A part is there twice."""
    at = draw.randrange(len(found))
    part = found[at : at + draw.choice((1, 8, 100, 1000))]
    found[at:at] = part


def splice(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """The end, or a block, of another file of the kind."""
    other = draw.choice(others)
    at, start = draw.randrange(len(found)), draw.randrange(len(other))
    size = draw.choice((len(other), 16, 256))
    part = other[start : start + size]
    found[at : at + len(part)] = part


def put_token(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """A word that means something to a parser, in the place of bytes or between them."""
    token, at = draw.choice(TOKENS), draw.randrange(len(found))
    found[at : at + draw.choice((0, len(token)))] = token


def put_number(found: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """A length, a count or an offset becomes an extreme one: 2, 4 or 8 bytes, either order."""
    kind, size = draw.choice((("h", 2), ("i", 4), ("q", 8)))
    number = draw.choice(EXTREMES) + draw.choice((-1, 0, 1))
    at = draw.randrange(len(found))
    wrapped = number & (256**size - 1)
    found[at : at + size] = struct.pack(draw.choice("<>") + kind.upper(), wrapped)


DAMAGE: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], None], ...] = (
    flip_bit, flip_bit, set_byte, change_digit, cut_short, zero_block, remove_block, repeat_block,
    splice, put_token, put_number,
)  # fmt: skip
