"""bfloat16 products on the matrix unit (AMX) of Intel's server processors, for numba kernels.

A multiplication takes two tiles of 16 rows of 64 bytes, in the forms that the unit reads:

    left   (16, 32) bfloat16, by rows
    right  (32, 16) bfloat16, rows 2 p and 2 p + 1 in turns: 16 rows p of 16 pairs

and adds left @ right, (16, 16), to float32 sums. Matrices are stored as such tiles, each 1 KB and
contiguous. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2,
TDPBF16PS; Linux, Documentation/arch/x86/xstate.rst.
"""

import ctypes
import functools
import platform

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from kernels.cpu.math import PART

SIDE = 32
"""Matrices are cut into blocks of 32 x 32: two left tiles, or two right ones."""
NEEDED = ("+amx-tile", "+amx-bf16", "+avx512bf16", "+avx512bw")
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA = 158, 0x1023, 18


@functools.cache
def why_not() -> str:
    """Why this process cannot use the unit, "" if it can; Linux grants it to processes that ask."""
    features = config.CPU_FEATURES
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    if not set(NEEDED) <= set(features.split(",")):
        return "needs a processor with AMX (amx_bf16), which this one does not have"
    if platform.system() != "Linux":
        return f"runs on Linux only, not on {platform.system()}"
    if not _granted():
        return "needs Linux 5.16 or newer to grant the use of AMX, which this system refused"
    return ""


def _granted() -> bool:
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA) == 0


def palette() -> np.ndarray:
    """The tile configuration: palette 1, eight tiles of 16 rows of 64 bytes."""
    found = np.zeros(64, np.uint8)
    found[0] = 1
    found[16:32].view(np.uint16)[:] = 64
    found[48:56] = 16
    return found


def _call(code, name: str, *arguments):
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments])
    code.call(cgutils.get_or_insert_function(code.module, kind, f"llvm.x86.{name}"), arguments)


@intrinsic
def configure(typing, address):
    """Makes this thread's tiles those of the palette (64 bytes) at `address`."""

    def emit(context, code, signature, arguments):
        _call(code, "ldtilecfg", code.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp), emit


@intrinsic
def release(typing):
    """Resets this thread's tiles to their initial state, so that they need not be saved."""

    def emit(context, code, signature, arguments):
        _call(code, "tilerelease")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def block_product(typing, left, left_step, right, right_step, count, out, out_row):
    """The float32 block (32, 32) at `out` = sum over `count` blocks of left @ right; bytes all.

    left  address of the first block's two left tiles, the others left_step bytes apart; right
    likewise of right tiles. out_row: bytes from a row of out to the next.
    """
    index, byte = ir.IntType(64), ir.IntType(8)

    def emit(context, code, signature, arguments):
        left, left_step, right, right_step, count, out, out_row = arguments

        def at(place, offset=0):
            return code.inttoptr(code.add(place, index(offset)), byte.as_pointer())

        for tile in range(4):
            _call(code, "tilezero", byte(tile))
        before, loop = code.block, code.append_basic_block("blocks")
        after = code.append_basic_block("after")
        code.branch(loop)
        code.position_at_end(loop)
        k = code.phi(index)
        a, b = (code.add(p, code.mul(k, s)) for p, s in ((left, left_step), (right, right_step)))
        for tile, place in ((4, at(a)), (6, at(b)), (7, at(b, 1024)), (5, at(a, 1024))):
            _call(code, "tileloadd64", byte(tile), place, index(64))
        for tile in range(4):
            _call(code, "tdpbf16ps", byte(tile), byte(4 + tile // 2), byte(6 + tile % 2))
        following = code.add(k, index(1))
        k.add_incoming(index(0), before)
        k.add_incoming(following, loop)
        code.cbranch(code.icmp_signed("<", following, count), loop, after)
        code.position_at_end(after)
        low = code.add(out, code.mul(out_row, index(16)))
        for tile, place in enumerate((at(out), at(out, 64), at(low), at(low, 64))):
            _call(code, "tilestored64", byte(tile), place, out_row)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), emit


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


def rounded(code, low, high):
    """Two vectors of 16 float32 as (32,) bfloat16, ties to even; bits as i16."""
    halves = ir.VectorType(_BFloat(), 32)
    kind = ir.FunctionType(halves, [high.type, low.type])
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    both = code.call(cgutils.get_or_insert_function(code.module, kind, name), [high, low])
    return code.bitcast(both, ir.VectorType(ir.IntType(16), 32))


def in_turns(code, both):
    """(32,) numbers, the first 16 and the last 16 in turns: a row of a right tile."""
    turns = ir.VectorType(ir.IntType(32), 32)([i // 2 + i % 2 * 16 for i in range(32)])
    return code.shuffle_vector(both, both, turns)


def store(code, value, place):
    """Puts a vector at an address."""
    code.store(value, code.inttoptr(place, value.type.as_pointer()), align=2)


def _load(code, place):
    floats = ir.VectorType(ir.FloatType(), 16)
    return code.load(code.inttoptr(place, floats.as_pointer()), align=4)


@intrinsic
def _left_row(typing, source, out):
    """32 float32 at `source` as 32 bfloat16 at `out`."""

    def emit(context, code, signature, arguments):
        source, out = arguments
        places = source, code.add(source, source.type(64))
        store(code, rounded(code, *(_load(code, place) for place in places)), out)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@intrinsic
def _right_row(typing, first, second, out):
    """Pairs of 16 float32 at `first` and 16 at `second` as bfloat16 at `out`."""

    def emit(context, code, signature, arguments):
        *places, out = arguments
        both = rounded(code, *(_load(code, place) for place in places))
        store(code, in_turns(code, both), out)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


@njit(**PART)
def to_left(source, row, out):
    """The 32 x 32 float32 at address `source`, rows `row` bytes apart, as two left tiles."""
    for i in range(SIDE):
        _left_row(source + i * row, out + i * SIDE * 2)


@njit(**PART)
def to_right(source, row, out):
    """The 32 x 32 float32 at address `source`, rows `row` bytes apart, as two right tiles."""
    for half in range(2):
        for i in range(0, SIDE, 2):
            first = source + i * row + half * 64
            _right_row(first, first + row, out + half * 1024 + i * 32)
