"""float32 matrix products for numba kernels, from a register tile written in LLVM's own words.

An adapter's products are thin (32 columns), and here the kernel, not the caller, lays out memory:
nothing needs packing, so a tile of 8 x 32 sums held in registers runs at 97-99 % of one core's
FMA rate (115 GFLOP/s; OpenBLAS 70-90, MKL 56-90 at these shapes: docs/kernels.md). It is LLVM IR
because numba has no arrays that live in registers. No threads, no global state, one order of sums.
"""

from llvmlite import binding, ir
from numba import config, njit, types
from numba.core import cgutils, imputils
from numba.extending import intrinsic, register_jitable
from numba.np import arrayobj

from kernels.cpu.math import OPTIONS


def _lanes() -> int:
    """float32 numbers in the widest vector of the processor that numba compiles for."""
    features = config.CPU_FEATURES
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return next(
        (n for flag, n in (("+avx512f", 16), ("+avx", 8)) if flag in features.split(",")), 4
    )


LANES = _lanes()
"""Columns of b and out come in multiples of this."""
ROWS = 8 if LANES == 16 else 6  # of a tile: 16 sums in AVX-512's 32 registers, 12 in 16
DEPTH = 128
"""Terms summed one after another before they join the sum so far. 512 in one sequence err 1.7 times
as much as MKL's products (root mean square)."""


@register_jitable
def padded(count: int) -> int:
    """The next multiple of LANES."""
    return -(-count // LANES) * LANES


def _tile(rows: int, vectors: int):
    """out[r, :] (+)= sum_k a[r, k] * b[k, :] for `rows` rows and `vectors` * LANES columns.

    `more` is 0 where out holds nothing yet.
    """
    number, index, lane = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(number, LANES)
    undefined = ir.Constant(vector, ir.Undefined)

    def emit(context, code, signature, arguments):
        a, a_row, a_step, b, out, width, depth, more = arguments
        a, b, out = (code.inttoptr(p, number.as_pointer()) for p in (a, b, out))
        # Fused where the processor can: llvm.fma would call libm where it cannot.
        multiply_add = cgutils.get_or_insert_function(
            code.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

        def at(base, *offsets):
            for offset in offsets:
                base = code.gep(base, [offset])
            return base

        def columns(row):
            places = (at(row, index(v * LANES)) for v in range(vectors))
            return [code.bitcast(place, vector.as_pointer()) for place in places]

        lines = [at(a, code.mul(a_row, index(r))) for r in range(rows)]
        before = code.block
        loop, after = code.append_basic_block("step"), code.append_basic_block("after")
        code.branch(loop)
        code.position_at_end(loop)
        k = code.phi(index)
        sums = [[code.phi(vector) for _ in range(vectors)] for _ in range(rows)]
        right = [code.load(place, align=4) for place in columns(at(b, code.mul(k, width)))]
        k_offset = code.mul(k, a_step)
        k_next = code.add(k, index(1))
        k.add_incoming(index(0), before)
        k.add_incoming(k_next, loop)
        new = []
        for line, row in zip(lines, sums, strict=True):
            one = code.insert_element(undefined, code.load(at(line, k_offset)), lane(0))
            left = code.shuffle_vector(one, undefined, ir.VectorType(lane, LANES)([0] * LANES))
            new.append([])
            for old, other in zip(row, right, strict=True):
                new[-1].append(code.call(multiply_add, [left, other, old]))
                old.add_incoming(vector([0.0] * LANES), before)
                old.add_incoming(new[-1][-1], loop)
        code.cbranch(code.icmp_signed("<", k_next, depth), loop, after)
        code.position_at_end(after)
        places = [columns(at(out, code.mul(width, index(r)))) for r in range(rows)]
        adding, fresh, end = (code.append_basic_block(n) for n in ("adding", "fresh", "end"))
        code.cbranch(code.icmp_signed("!=", more, index(0)), adding, fresh)
        for block in (adding, fresh):
            code.position_at_end(block)
            for row, values in zip(places, new, strict=True):
                for place, value in zip(row, values, strict=True):
                    if block is adding:
                        value = code.fadd(code.load(place, align=4), value)
                    code.store(value, place, align=4)
            code.branch(end)
        code.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, a, a_row, a_step, b, out, width, depth, more):
        return types.void(*[types.intp] * 8), emit

    return tile


_wide, _narrow = _tile(ROWS, 2), _tile(ROWS, 1)
_wide_row, _narrow_row = _tile(1, 2), _tile(1, 1)

APART = OPTIONS | {"forceinline": False}
"""The order of sums stands in the tile, so that products may stay functions of their own and keep
their bits (numba_math.OPTIONS): compiled into their callers, the general step's kernels would take
26 s to compile in place of 17."""


@njit(**APART)
def _product(a, a_row, a_step, b, out, width, depth, rows):
    """Addresses and strides (in numbers) in place of arrays: compiled once for every layout."""
    size = 4
    for j in range(0, width, 2 * LANES):
        wide = j + LANES < width
        for k in range(0, depth, DEPTH):
            here = min(DEPTH, depth - k)
            right = b + (k * width + j) * size
            r = 0
            while r < rows:
                left, place = a + (r * a_row + k * a_step) * size, out + (r * width + j) * size
                if r + ROWS <= rows:
                    if wide:
                        _wide(left, a_row, a_step, right, place, width, here, k)
                    else:
                        _narrow(left, a_row, a_step, right, place, width, here, k)
                    r += ROWS
                else:
                    if wide:
                        _wide_row(left, a_row, a_step, right, place, width, here, k)
                    else:
                        _narrow_row(left, a_row, a_step, right, place, width, here, k)
                    r += 1


@njit(**APART)
def matmul(a, b, out):
    """out = a[:, :K] @ b; a (M, at least K), b (K, N), out (M, N), C-contiguous float32.

    N is a multiple of LANES, K at least 1. Nothing is checked.
    """
    _product(a.ctypes.data, a.shape[1], 1, b.ctypes.data, out.ctypes.data, out.shape[1], len(b),
             len(out))  # fmt: skip


@njit(**APART)
def matmul_t(a, b, out):
    """out = a.T @ b; a (K, M), b (K, N), out (M, N), as for matmul."""
    _product(a.ctypes.data, 1, a.shape[1], b.ctypes.data, out.ctypes.data, out.shape[1], len(b),
             len(out))  # fmt: skip


@intrinsic
def matrix(typing, numbers, start, rows, columns):
    """numbers[start : start + rows * columns] as (rows, columns); nothing is checked or copied."""
    result = types.Array(numbers.dtype, 2, "C")

    def emit(context, code, signature, arguments):
        _, start, rows, columns = arguments
        source = arrayobj.make_array(signature.args[0])(context, code, arguments[0])
        out = arrayobj.make_array(result)(context, code)
        arrayobj.populate_array(
            out,
            data=code.gep(source.data, [start]),
            shape=[rows, columns],
            strides=[code.mul(columns, source.itemsize), source.itemsize],
            itemsize=source.itemsize,
            meminfo=source.meminfo,
            parent=source.parent,
        )
        return imputils.impl_ret_borrowed(context, code, result, out._getvalue())

    return result(numbers, types.intp, types.intp, types.intp), emit


@njit(**APART)
def gather(table, rows, out):
    """out[i, :D] = table[rows[i]]; assigning whole rows costs 3 s of compiling."""
    for i in range(len(rows)):
        row = rows[i]
        for d in range(table.shape[1]):
            out[i, d] = table[row, d]


@njit(**APART)
def transpose(x, out):
    """out = x.T where both have a place, 8 x 8 at a time: 8 us for 32 x 512, row by row 17."""
    size, width = min(len(x), out.shape[1]), min(len(out), x.shape[1])
    for d in range(0, width, 8):
        for i in range(0, size, 8):
            if i + 8 <= size and d + 8 <= width:
                for a in range(8):
                    for b in range(8):
                        out[d + b, i + a] = x[i + a, d + b]
            else:
                for a in range(i, min(size, i + 8)):
                    for b in range(d, min(width, d + 8)):
                        out[b, a] = x[a, b]
