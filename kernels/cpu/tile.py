"""float32 matrix products for numba kernels, built on a register tile written as LLVM IR.

An adapter's products are thin (32 columns), and the kernel, not the caller, chooses the memory
layout, so nothing needs packing: a tile of 8 x 32 sums held in registers runs at 97-99 % of one
core's FMA rate (115 GFLOP/s; OpenBLAS 70-90, MKL 56-90 at these shapes: docs/kernels.md). It is
LLVM IR because numba cannot keep arrays in registers. No threads, no global state, one order of
sums.
"""

import itertools

from llvmlite import binding, ir
from numba import carray, config, njit, types
from numba.core import cgutils, imputils
from numba.extending import intrinsic, register_jitable
from numba.np import arrayobj

from kernels.cpu.math import OPTIONS, F


def _lanes() -> int:
    """float32 numbers in the widest vector of the processor that numba compiles for."""
    features = config.CPU_FEATURES
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return next(
        (n for flag, n in (("+avx512f", 16), ("+avx", 8)) if flag in features.split(",")), 4
    )


LANES = _lanes()
"""The columns of b and out are a multiple of this."""
WIDE = 2 * LANES
ROWS = 8 if LANES == 16 else 6  # of a tile: 16 sums in AVX-512's 32 registers, 12 in 16
DEPTH = 128
"""Terms added in sequence before they are added to the sum so far. With 512 in one sequence the
error is 1.7 times that of MKL's products (root mean square)."""
LINE = DEPTH + 16  # one cache line more than DEPTH, so that rows map to different cache sets


@register_jitable
def padded(count: int) -> int:
    """The next multiple of LANES."""
    return -(-count // LANES) * LANES


def _tile(rows: int, vectors: int, far: bool = False):
    """out[r, :] (+)= sum_k a[r, k] * b[k, :] for `rows` rows and `vectors` * LANES columns.

    b_row and width are the strides of b and out in numbers; `more` is 0 if out holds nothing yet.
    far: out is in neither L1 nor L2, and its rows are too far apart for the hardware prefetcher, so
    they are prefetched: large products are 7 to 15 % faster; a step's, with out near, 5 % slower.
    """
    number, index, lane = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(number, LANES)

    def emit(context, code, signature, arguments):
        a, a_row, a_step, b, b_row, out, width, depth, more = arguments
        a, b, out = (code.inttoptr(p, number.as_pointer()) for p in (a, b, out))
        # Fused if the processor can do it; llvm.fma would call libm if it cannot.
        multiply_add = cgutils.get_or_insert_function(
            code.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        pointer = vector.as_pointer()
        fetch = cgutils.get_or_insert_function(
            code.module, ir.FunctionType(ir.VoidType(), [pointer] + [lane] * 3), "llvm.prefetch.p0"
        )

        def at(base, *offsets):
            for offset in offsets:
                base = code.gep(base, [offset])
            return base

        def columns(row):
            places = (at(row, index(v * LANES)) for v in range(vectors))
            return [code.bitcast(place, vector.as_pointer()) for place in places]

        lines = [at(a, code.mul(a_row, index(r))) for r in range(rows)]
        places = [columns(at(out, code.mul(width, index(r)))) for r in range(rows)]
        for place in itertools.chain(*places) if far else ():
            code.call(fetch, [place, lane(0), lane(3), lane(1)])  # for reading, to L1, as data
        before = code.block
        loop, after = code.append_basic_block("step"), code.append_basic_block("after")
        code.branch(loop)
        code.position_at_end(loop)
        k = code.phi(index)
        sums = [[code.phi(vector) for _ in range(vectors)] for _ in range(rows)]
        right = [code.load(place, align=4) for place in columns(at(b, code.mul(k, b_row)))]
        k_offset = code.mul(k, a_step)
        k_next = code.add(k, index(1))
        k.add_incoming(index(0), before)
        k.add_incoming(k_next, loop)
        new = []
        for line, row in zip(lines, sums, strict=True):
            left = all_of(code, code.load(at(line, k_offset)), LANES)
            new.append([])
            for old, other in zip(row, right, strict=True):
                new[-1].append(code.call(multiply_add, [left, other, old]))
                old.add_incoming(vector([0.0] * LANES), before)
                old.add_incoming(new[-1][-1], loop)
        code.cbranch(code.icmp_signed("<", k_next, depth), loop, after)
        code.position_at_end(after)
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
    def tile(typing, a, a_row, a_step, b, b_row, out, width, depth, more):
        return types.void(*[types.intp] * 9), emit

    return tile


register_tile, _narrow = _tile(ROWS, 2), _tile(ROWS, 1)
_far_tile = _tile(ROWS, 2, far=True)
_wide_row, _narrow_row = _tile(1, 2), _tile(1, 1)

APART = OPTIONS | {"forceinline": False}
"""The tile fixes the order of sums, so products can be separate functions and keep their bits (see
kernels.cpu.math.OPTIONS). Inlined, they would make the general step compile for 26 s, not 17."""


@njit(**APART)
def product(a, a_row, a_step, b, out, width, depth, rows):
    """out (rows, width) = a @ b over `depth` terms; a, b and out are addresses.

    a_row and a_step are a's strides in numbers, b and out are contiguous: compiled once for all.
    """
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
                        register_tile(left, a_row, a_step, right, width, place, width, here, k)
                    else:
                        _narrow(left, a_row, a_step, right, width, place, width, here, k)
                    r += ROWS
                else:
                    if wide:
                        _wide_row(left, a_row, a_step, right, width, place, width, here, k)
                    else:
                        _narrow_row(left, a_row, a_step, right, width, place, width, here, k)
                    r += 1


@njit(**APART)
def matmul(a, b, out):
    """out = a[:, :K] @ b; a (M, at least K), b (K, N), out (M, N), C-contiguous float32.

    N is a multiple of LANES, K is at least 1; nothing is checked.
    """
    product(a.ctypes.data, a.shape[1], 1, b.ctypes.data, out.ctypes.data, out.shape[1], len(b),
             len(out))  # fmt: skip


@njit(**APART)
def matmul_t(a, b, out):
    """out = a.T @ b; a (K, M), b (K, N), out (M, N), as for matmul."""
    product(a.ctypes.data, 1, a.shape[1], b.ctypes.data, out.ctypes.data, out.shape[1], len(b),
             len(out))  # fmt: skip


def _copy(count: int):
    """The `count` numbers at address `source`, times `factor`, to address `out`."""
    numbers = ir.VectorType(ir.FloatType(), count)

    def emit(context, code, signature, arguments):
        source, out, *factor = arguments
        source, out = (code.inttoptr(p, numbers.as_pointer()) for p in (source, out))
        value = code.load(source, align=4)
        if factor:
            value = code.fmul(value, all_of(code, factor[0], count))
        code.store(value, out, align=4)
        return context.get_dummy_value()

    return emit


@intrinsic
def _copy_rows(typing, source, out):
    """ROWS numbers."""
    return types.void(types.intp, types.intp), _copy(ROWS)


@intrinsic
def _copy_columns(typing, source, out, factor):
    """WIDE numbers, times factor."""
    return types.void(types.intp, types.intp, types.float32), _copy(WIDE)


def all_of(code, number, count: int):
    """LLVM IR for a vector of `count` copies of the float32 `number`."""
    undefined = ir.Constant(ir.VectorType(ir.FloatType(), count), ir.Undefined)
    one = code.insert_element(undefined, number, ir.IntType(32)(0))
    return code.shuffle_vector(one, undefined, ir.VectorType(ir.IntType(32), count)([0] * count))


@intrinsic
def _transpose_8(typing, source, source_row, factor, out, out_row):
    """8 x 8 numbers at address `out` = factor * those at `source`, transposed; strides of both."""
    index, lane, eight = ir.IntType(64), ir.IntType(32), ir.VectorType(ir.FloatType(), 8)

    def emit(context, code, signature, arguments):
        source, source_row, factor, out, out_row = arguments

        def places(start, stride):
            start = code.inttoptr(start, ir.FloatType().as_pointer())
            rows = (code.gep(start, [code.mul(stride, index(r))]) for r in range(8))
            return [code.bitcast(row, eight.as_pointer()) for row in rows]

        def shuffled(a, b, picks):
            return code.shuffle_vector(a, b, ir.VectorType(lane, 8)(picks))

        rows = [code.load(place, align=4) for place in places(source, source_row)]
        for apart, low in ((1, [0, 8, 2, 10, 4, 12, 6, 14]), (2, [0, 1, 8, 9, 4, 5, 12, 13]),
                           (4, [0, 1, 2, 3, 8, 9, 10, 11])):  # fmt: skip
            for r in range(8):
                if not r & apart:
                    pair = rows[r], rows[r + apart]
                    rows[r] = shuffled(*pair, low)
                    rows[r + apart] = shuffled(*pair, [p + apart for p in low])
        factor = all_of(code, factor, 8)
        for place, row in zip(places(out, out_row), rows, strict=True):
            code.store(code.fmul(row, factor), place, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp, types.intp), emit


@njit(**APART)
def wide_product(a, turned, b, across, factor, out, more, panels):
    """out (+)= factor * A @ B, any shape; A is a, or a.T if `turned`; B is b, or b.T if `across`.

    a, b and out are C-contiguous float32; out (M, N) holds nothing yet if `more` is 0; panels has
    panels_length(M) numbers. The sums are those of matmul, in its order. Rows of A and B may be
    whole pages apart, so DEPTH terms are packed at a time, for L2, and WIDE columns of B, for L1.
    """
    rows, columns = out.shape
    depth = len(a) if turned else a.shape[1]
    panel = panels.ctypes.data
    corner = panel + DEPTH * WIDE * 4
    lines = corner + ROWS * WIDE * 4
    aside = turned or rows < ROWS  # A's rows lie side by side in lines, ROWS of them at a time
    row, step = (1, ROWS) if aside else (LINE, 1)
    for k in range(0, depth, DEPTH):
        here = min(DEPTH, depth - k)
        if aside:
            _pack_aside(a, turned, k, here, rows, lines)
        else:
            _pack_rows(a, k, here, lines)
        for start in range(0, columns, WIDE):
            j = max(0, min(start, columns - WIDE))  # the last panel laps over the one before
            _pack_columns(b, across, k, here, j, min(WIDE, columns), factor, panel)
            for first in range(0, rows, ROWS):
                r = max(0, min(first, rows - ROWS))
                left = lines + (first * DEPTH if aside else r * LINE) * 4
                place = out.ctypes.data + (r * columns + j) * 4
                if r == first and j == start and rows >= ROWS and columns >= WIDE:
                    _far_tile(left, row, step, panel, WIDE, place, columns, here, more + k)
                    continue
                register_tile(left, row, step, panel, WIDE, corner, WIDE, here, 0)
                done = carray(_pointer(corner), (ROWS, WIDE))
                for i in range(first, min(rows, first + ROWS)):
                    for c in range(start, min(columns, start + WIDE)):
                        before = out[i, c] if more + k else F(0)
                        out[i, c] = before + done[i - r, c - j]


def panels_length(rows: int) -> int:
    """The length of the scratch that wide_product needs for `rows` rows of out."""
    return (DEPTH + ROWS) * WIDE + -(-rows // ROWS) * ROWS * LINE


@njit(**APART)
def _pack_rows(a, k, here, lines):
    """Copy a[:, k : k + here] to rows that are LINE numbers apart."""
    blocks = here // WIDE * WIDE
    every = carray(_pointer(lines), (len(a), LINE))
    for r in range(len(a)):
        source, target = a.ctypes.data + (r * a.shape[1] + k) * 4, lines + r * LINE * 4
        for d in range(0, blocks, WIDE):
            _copy_columns(source + d * 4, target + d * 4, F(1))
        for d in range(blocks, here):
            every[r, d] = a[r, k + d]


@njit(**APART)
def _pack_aside(a, turned, k, here, rows, lines):
    """Copy A's rows interleaved, ROWS at a time, padded with zero rows."""
    for first in range(0, rows, ROWS):
        r, target = max(0, min(first, rows - ROWS)), lines + first * DEPTH * 4
        if rows >= ROWS:
            for d in range(here):
                _copy_rows(a.ctypes.data + ((k + d) * rows + r) * 4, target + d * ROWS * 4)
            continue
        few = carray(_pointer(target), (here, ROWS))
        for d in range(here):
            for i in range(ROWS):
                few[d, i] = F(0)
                if i < rows:
                    few[d, i] = a[k + d, i] if turned else a[i, k + d]


@njit(**APART)
def _pack_columns(b, across, k, here, j, wide, factor, panel):
    """Copy factor * B[k : k + here, j : j + wide] to rows of WIDE numbers, padded with zeros."""
    source = b.ctypes.data + ((j * b.shape[1] + k) if across else (k * b.shape[1] + j)) * 4
    blocks = 0 if wide < WIDE else here // 8 * 8 if across else here
    if across:
        for d in range(0, blocks, 8):
            for c in range(0, WIDE, 8):
                _transpose_8(source + (c * b.shape[1] + d) * 4, b.shape[1], factor,
                             panel + (d * WIDE + c) * 4, WIDE)  # fmt: skip
    else:
        for d in range(blocks):
            _copy_columns(source + d * b.shape[1] * 4, panel + d * WIDE * 4, factor)
    rest = carray(_pointer(panel), (here, WIDE))
    for d in range(blocks, here):
        for c in range(WIDE):
            rest[d, c] = F(0)
            if c < wide:
                rest[d, c] = factor * (b[j + c, k + d] if across else b[k + d, j + c])


@intrinsic
def _pointer(typing, address):
    """The pointer type that carray takes, from an address."""

    def emit(context, code, signature, arguments):
        return code.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.intp), emit


@intrinsic
def matrix(typing, numbers, start, rows, columns):
    """A view (rows, columns) of numbers[start : start + rows * columns]; nothing is checked."""
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
    """out[i, :D] = table[rows[i]]; assigning whole rows would take 3 s more to compile."""
    for i in range(len(rows)):
        row = rows[i]
        for d in range(table.shape[1]):
            out[i, d] = table[row, d]


@njit(**APART)
def transpose(x, out):
    """out = x.T on the part that both cover, in blocks of 8 x 8 held in registers.

    Rows are contiguous. 32 x 512 takes 5 us instead of 8 one number at a time.
    """
    size, width = min(len(x), out.shape[1]), min(len(out), x.shape[1])
    x_row, out_row = x.strides[0] // 4, out.strides[0] // 4
    for d in range(0, width, 8):
        for i in range(0, size, 8):
            if i + 8 <= size and d + 8 <= width:
                _transpose_8(x.ctypes.data + i * x.strides[0] + d * 4, x_row, F(1),
                             out.ctypes.data + d * out.strides[0] + i * 4, out_row)  # fmt: skip
            else:
                for a in range(i, min(size, i + 8)):
                    for b in range(d, min(width, d + 8)):
                        out[b, a] = x[a, b]
