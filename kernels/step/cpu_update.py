"""A weight's gradient and Adam on it together: the gradient never reaches memory.

Adam's square roots and divisions take as long as the gradient's products (100 us each for
512 x 512 on an AVX-512 core) and use another unit, but a processor only looks a few hundred
instructions ahead and so runs one after the other. `_tile_with_adam` therefore interleaves them:
after every second term of a tile's sums comes one vector of Adam on the previous ROWS rows.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from kernels.cpu.math import PART
from kernels.cpu.tile import (
    DEPTH,
    LANES,
    ROWS,
    WIDE,
    all_of,
    matmul,
    matrix,
    padded,
    product,
    register_tile,
)

TOGETHER = LANES == 16
"""AVX-512's 32 registers hold 16 sums, 2 factors and what Adam needs; AVX has 16."""
VECTORS = 2
TERMS = 2  # of a tile's sums to a vector of Adam
AHEAD = 16 * LANES
"""How far ahead of Adam weight, m and v are prefetched, in numbers; it saves 2 to 4 %."""


@register_jitable
def panel_width(width: int) -> int:
    """The number of contiguous columns in a layer's inputs by row: a tile's, or all of them.

    Otherwise a tile's WIDE columns of 32 rows of 512 are on 16 pages, and the hardware prefetcher
    loses track of weight and moments: an update takes 260 us instead of 224.
    """
    return WIDE if TOGETHER and width % WIDE == 0 else padded(width)


def declared(code, name, result, *parameters):
    """The LLVM function `name` in the module that `code` builds."""
    return cgutils.get_or_insert_function(code.module, ir.FunctionType(result, parameters), name)


def adam_of(code, settings, count):
    """emit(weight, gradient, m, v) for Adam on `count` float32 at four pointers; see `adam`.

    settings is a pointer to its 8 numbers. emit returns the new weights, which it also stores.
    """
    vector = ir.VectorType(ir.FloatType(), count)
    multiply_add = declared(code, f"llvm.fmuladd.v{count}f32", vector, *[vector] * 3)
    root = declared(code, f"llvm.sqrt.v{count}f32", vector, vector)
    numbers = (code.load(code.gep(settings, [ir.IntType(64)(i)])) for i in range(8))
    rate, shrink, decay, beta1, rest1, beta2, rest2, eps = (
        all_of(code, one, count) for one in numbers
    )

    def fused(x, y, z):
        return code.call(multiply_add, [x, y, z])

    def emit(*pointers):
        weight, gradient, m, v = (code.bitcast(p, vector.as_pointer()) for p in pointers)
        old = code.load(weight, align=4)
        g = fused(decay, old, code.load(gradient, align=4))
        first = fused(rest1, g, code.fmul(beta1, code.load(m, align=4)))
        second = fused(rest2, code.fmul(g, g), code.fmul(beta2, code.load(v, align=4)))
        below = fused(shrink, code.call(root, [second]), eps)
        new = code.fsub(old, code.fdiv(code.fmul(rate, first), below))
        for place, value in ((m, first), (v, second), (weight, new)):
            code.store(value, place, align=4)
        return new

    return emit


def _tile_with_adam():
    """register_tile's out = a @ b, and Adam on ROWS * WIDE other, contiguous weights."""
    number, index, lane = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(number, LANES)
    pointer = vector.as_pointer()

    def emit(context, code, signature, arguments):
        *places, a_row, b_row, width, depth = arguments
        a, b, out, weight, gradient, m, v, settings = (
            code.inttoptr(place, number.as_pointer()) for place in places
        )

        multiply_add = declared(code, f"llvm.fmuladd.v{LANES}f32", vector, *[vector] * 3)
        fetch = declared(code, "llvm.prefetch.p0", ir.VoidType(), pointer, *[lane] * 3)
        on_vector = adam_of(code, settings, LANES)

        def fused(x, y, z):
            return code.call(multiply_add, [x, y, z])

        def at(base, offset):
            return code.bitcast(code.gep(base, [offset]), pointer)

        def load(base, offset):
            return code.load(at(base, offset), align=4)

        lines = [code.gep(a, [code.mul(a_row, index(r))]) for r in range(ROWS)]

        def adam(place):
            on_vector(*(code.gep(base, [place]) for base in (weight, gradient, m, v)))

        def term(k, sums):
            row = code.mul(k, b_row)
            right = [load(b, code.add(row, index(i * LANES))) for i in range(VECTORS)]
            left = [all_of(code, code.load(code.gep(line, [k])), LANES) for line in lines]
            return [
                fused(left[i // VECTORS], right[i % VECTORS], old) for i, old in enumerate(sums)
            ]

        def loop(name, start, sums, goes, body):
            """body(i, sums) for i from start on while goes(i); the last i and sums."""
            before = code.block
            head, inside, after = (code.append_basic_block(name) for _ in range(3))
            code.branch(head)
            code.position_at_end(head)
            i, current = code.phi(index), [code.phi(vector) for _ in sums]
            code.cbranch(goes(i), inside, after)
            code.position_at_end(inside)
            following, new = code.add(i, index(1)), body(i, current)
            for phi, first, later in zip([i, *current], [start, *sums], [following, *new],
                                         strict=True):  # fmt: skip
                phi.add_incoming(first, before)
                phi.add_incoming(later, code.block)
            code.branch(head)
            code.position_at_end(after)
            return i, current

        def both(i, sums):
            place = code.mul(i, index(LANES))
            for base in (weight, m, v):
                ahead = at(base, code.add(place, index(AHEAD)))
                code.call(fetch, [ahead, lane(0), lane(3), lane(1)])
            adam(place)
            for k in range(TERMS):
                sums = term(code.add(code.mul(i, index(TERMS)), index(k)), sums)
            return sums

        def adam_alone(i, sums):
            adam(code.mul(i, index(LANES)))
            return sums

        all_vectors = index(ROWS * VECTORS)
        pairs = code.sdiv(depth, index(TERMS))
        least = code.select(code.icmp_signed("<", pairs, all_vectors), pairs, all_vectors)
        none = [vector([0.0] * LANES)] * (ROWS * VECTORS)
        done, sums = loop("both", index(0), none, lambda i: code.icmp_signed("<", i, least), both)
        _, sums = loop("terms", code.mul(done, index(TERMS)), sums,
                       lambda i: code.icmp_signed("<", i, depth), term)  # fmt: skip
        loop("adam", done, [], lambda i: code.icmp_signed("<", i, all_vectors), adam_alone)
        for i, value in enumerate(sums):
            row, column = divmod(i, VECTORS)
            place = code.add(code.mul(width, index(row)), index(column * LANES))
            code.store(value, at(out, place), align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, a, b, out, weight, gradient, m, v, settings, a_row, b_row, width, depth):
        return types.void(*[types.intp] * 12), emit

    return tile


tile_with_adam = _tile_with_adam()


@njit(**PART)
def update(weight, d_out, inputs, size, m, v, gradient, settings, following, out):
    """Adam on weight (D, D) with the gradient sum_i d_out[:, i] inputs[i]^T over i < size.

    d_out (D, P). inputs, flat, holds panels (size, panel_width(D)) of the columns, one after
    another. gradient (2, ROWS, padded D) is scratch, settings (8,) as in `adam`. All float32.

    Then out (D, P') = weight @ following (D, P'), unless P' is 0: ROWS rows behind Adam, while
    they are in the L1 cache.
    """
    width = len(weight)
    if TOGETHER and width % WIDE == 0:
        _update_together(weight, d_out, inputs, size, m, v, gradient, settings, following, out)
        return
    by_row = matrix(inputs, 0, size, padded(width))
    for start in range(0, width, ROWS):
        end = min(width, start + ROWS)
        matmul(d_out[start:end], by_row, gradient[0, : end - start])
        for d in range(start, end):
            adam(weight[d], gradient[0, d - start, :width], m[d], v[d], settings)
        _forward(weight, start, end, following, out)


@njit(**PART)
def _forward(weight, start, end, following, out):
    """out[start:end] = weight[start:end] @ following, if out has columns."""
    width, columns = len(weight), out.shape[1]
    if columns:
        product(
            weight.ctypes.data + start * width * 4, width, 1, following.ctypes.data,
            out.ctypes.data + start * columns * 4, columns, width, end - start,
        )  # fmt: skip


@njit(**PART)
def _update_together(weight, d_out, inputs, size, m, v, gradient, settings, following, out):
    width, blocks = len(weight), len(weight) // ROWS
    row, tiles, first = d_out.shape[1], width // WIDE, min(size, DEPTH)
    for block in range(blocks):
        new, old = gradient[block % 2], gradient[1 - block % 2]
        left = d_out.ctypes.data + block * ROWS * row * 4
        for tile in range(tiles):
            right = inputs.ctypes.data + tile * size * WIDE * 4
            partial = new.ctypes.data + tile * WIDE * 4
            if block == 0:
                register_tile(left, row, 1, right, WIDE, partial, width, first, 0)
            else:
                done = tile * ROWS * WIDE
                place = ((block - 1) * ROWS * width + done) * 4
                tile_with_adam(
                    left, right, partial, weight.ctypes.data + place, old.ctypes.data + done * 4,
                    m.ctypes.data + place, v.ctypes.data + place, settings.ctypes.data,
                    row, WIDE, width, first,
                )  # fmt: skip
            for k in range(DEPTH, size, DEPTH):
                register_tile(left + k * 4, row, 1, right + k * WIDE * 4, WIDE, partial, width,
                              min(DEPTH, size - k), k)  # fmt: skip
        if block:
            _forward(weight, (block - 1) * ROWS, block * ROWS, following, out)
    last = gradient[1 - blocks % 2]
    for r in range(ROWS):
        d = width - ROWS + r
        adam(weight[d], last[r], m[d], v[d], settings)
    _forward(weight, width - ROWS, width, following, out)


@njit(**PART)
def adam(weight, gradient, m, v, settings):
    """torch.optim.Adam with coupled L2, in place, on vectors of one length.

    settings (8,): rate = lr / (1 - beta1^t), shrink = (1 - beta2^t)^-1/2, weight decay, beta1,
    1 - beta1, beta2, 1 - beta2, eps. In tile_with_adam's order of operations: a weight's bits do
    not depend on which of the two it met.
    """
    rate, shrink, decay, beta1, rest1, beta2, rest2, eps = (
        settings[0], settings[1], settings[2], settings[3],
        settings[4], settings[5], settings[6], settings[7],
    )  # fmt: skip
    for i in range(weight.size):
        g = gradient[i] + decay * weight[i]
        first = beta1 * m[i] + rest1 * g
        second = beta2 * v[i] + rest2 * g * g
        m[i] = first
        v[i] = second
        weight[i] -= rate * first / (np.sqrt(second) * shrink + eps)
