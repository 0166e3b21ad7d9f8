"""adapter_steps with bfloat16 products: the step of kernels/step/cpu.py on the CPU's matrix unit.

Factors are rounded to bfloat16 (8 bits of mantissa); sums, losses, gradients of biases and Adam are
float32, and so are the weights that Adam updates: mixed precision as on GPUs. For a whole call, the
thread's scratch holds weights and moments in blocks of 32 x 32, because a block's gradient is one
product of 32 rows, and next to each weight its bfloat16 forms, which Adam writes.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from kernels.adapter import AdamSettings, AdapterState
from kernels.backends import BackendUnavailable
from kernels.cpu import amx
from kernels.cpu.amx import SIDE, block_product, configure, palette, release, to_left, to_right
from kernels.cpu.math import OPTIONS, PART, F
from kernels.cpu.scratch import staggered
from kernels.cpu.tile import gather, matrix, transpose
from kernels.step.cpu import activate, add_bias, count_rows, run_lanes, sum_rows, times_slope
from kernels.step.cpu_loss import loss, unit
from kernels.step.cpu_update import adam, adam_of

BLOCK = SIDE * SIDE
BYTES = 2 * BLOCK  # of a block in bfloat16


def adapter_steps(
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    settings: AdamSettings,
    logit_scale: float,
) -> Tensor:
    """See kernels.step.adapter_steps; arguments are checked there. D is a multiple of 32.

    Raises BackendUnavailable for other widths.
    """
    width, batch = features.shape[1], rows.shape[2]
    if width % SIDE:
        raise BackendUnavailable(
            "backend 'numba-bf16' needs features whose width is a multiple of "
            f"{SIDE}, not {width}; pass --backend auto"
        )
    return run_lanes(
        _train_lane, lambda: _scratch(width, batch), _spare(width, batch),
        adapters, features, labels, unit_text, rows, settings, logit_scale,
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def _spare(width: int, batch: int) -> list:
    return []


def _scratch(width: int, batch: int) -> tuple:
    """What one thread needs; zeros, so that columns behind a batch hold nothing slow."""
    size = -(-batch // SIDE) * SIDE * width
    blocks = (width // SIDE) ** 2
    return (
        tuple(array.reshape(blocks, BLOCK) for array in staggered(width * width, 6)),
        np.empty((2, blocks, BLOCK), np.int16),
        np.empty((blocks, BLOCK // 2), np.int32),
        np.empty((6, width), np.float32),
        np.zeros((8, size), np.float32),
        np.empty((2, size), np.int16),
        np.empty((3, size // 2), np.int32),
        np.empty((2, BLOCK), np.float32),
        palette(),
    )


@njit(**OPTIONS)
def _train_lane(
    w1, b1, w2, b2, features, labels, unit_text, rows, options, scale,
    state, left, w2_right, vectors, wide, wide_left, wide_right, gradients, tiles, losses,
):  # fmt: skip
    width = features.shape[1]
    across = width // SIDE
    lr, weight_decay, beta1, beta2, eps = options
    settings = np.empty(8, np.float32)
    v1, m1, w1_blocks, v2, m2, w2_blocks = state
    m1[:] = v1[:] = m2[:] = v2[:] = F(0)
    vectors[:4] = F(0)
    _to_blocks(w1, w1_blocks)
    _to_blocks(w2, w2_blocks)
    configure(tiles.ctypes.data)
    for n in range(len(w1_blocks)):
        _to_left_block(w1_blocks, n, left[0])
        _to_left_block(w2_blocks, n, left[1])
        _to_right_block(w2_blocks, n, across, w2_right)
    for step in range(len(rows)):
        size = count_rows(rows, step)
        if size == 0:
            break
        p = (size + SIDE - 1) // SIDE * SIDE
        x_by_row, h_by_row = matrix(wide[0], 0, p, width), matrix(wide[1], 0, p, width)
        z_by_row, d_by_row = matrix(wide[2], 0, p, width), matrix(wide[2], 0, p, width)
        x, h = matrix(wide[3], 0, width, p), matrix(wide[4], 0, width, p)
        z, u = matrix(wide[5], 0, width, p), matrix(wide[6], 0, width, p)
        d_h = matrix(wide[7], 0, width, p)
        gather(features, rows[step, :size], x_by_row)
        x_by_row[size:] = F(0)
        transpose(x_by_row, x)
        _right_blocks(x, wide_right[0])
        _multiply(left[0], wide_right[0], across, h)
        activate(h, b1)
        _right_blocks(h, wide_right[0])
        _multiply(left[1], wide_right[0], across, z)
        add_bias(z, b2)
        unit(x, z, u)
        losses[step] = loss(u, labels, rows[step, :size], unit_text, scale, z, d_h)
        if size < p:
            z[:, size:] = F(0)
        sum_rows(z, size, vectors[5])
        transpose(z, z_by_row)
        _left_blocks(z_by_row, wide_left[0])
        _left_blocks(z, wide_left[1])
        _multiply(wide_left[0], w2_right, across, d_by_row)
        transpose(d_by_row, d_h)
        times_slope(d_h, h)
        sum_rows(d_h, size, vectors[4])
        _left_blocks(d_h, wide_left[0])
        transpose(h, h_by_row)
        h_by_row[size:] = F(0)
        _right_blocks(h_by_row, wide_right[1])
        _right_blocks(x_by_row, wide_right[2])
        settings[:] = (lr / (1 - beta1 ** (step + 1)), 1 / np.sqrt(1 - beta2 ** (step + 1)),
                       weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, eps)  # fmt: skip
        blocks = p // SIDE
        _update(w2_blocks, wide_left[1], wide_right[1], blocks, m2, v2, gradients, settings,
                left[1], w2_right)  # fmt: skip
        _update(w1_blocks, wide_left[0], wide_right[2], blocks, m1, v1, gradients, settings,
                left[0], w2_right[:0])  # fmt: skip
        adam(b1, vectors[4], vectors[0], vectors[1], settings)
        adam(b2, vectors[5], vectors[2], vectors[3], settings)
    release()
    _from_blocks(w1_blocks, w1)
    _from_blocks(w2_blocks, w2)


@njit(**PART)
def _multiply(left, right, count, out):
    """out (M, N) = the left blocks (M, K), by rows, times the right blocks (K, N), by columns.

    K is `count` blocks; left and right may be longer.
    """
    rows, columns = out.shape[0] // SIDE, out.shape[1] // SIDE
    for r in range(rows):
        for c in range(columns):
            place = (r * SIDE * out.shape[1] + c * SIDE) * 4
            block_product(
                left.ctypes.data + r * count * BYTES, BYTES,
                right.ctypes.data + c * count * BYTES, BYTES, count,
                out.ctypes.data + place, out.shape[1] * 4,
            )  # fmt: skip


def _adam_on_two_rows(both: bool):
    """Adam on two rows of a block, 64 numbers at addresses, and their rows of its tiles.

    The left tiles' rows go to `left` and the one after; if `both`, the right tiles' to `right`.
    """

    def emit(context, code, signature, arguments):
        left, right = arguments[5:]
        weight, gradient, m, v, settings = (
            code.inttoptr(place, ir.FloatType().as_pointer()) for place in arguments[:5]
        )
        on_vector, index = adam_of(code, settings, 16), ir.IntType(64)
        upper, upper_end, lower, lower_end = (
            on_vector(*(code.gep(p, [index(at)]) for p in (weight, gradient, m, v)))
            for at in range(0, 64, 16)
        )
        amx.store(code, amx.rounded(code, upper, upper_end), left)
        amx.store(code, amx.rounded(code, lower, lower_end), code.add(left, index(64)))
        if both:
            for pair, at in (((upper, lower), 0), ((upper_end, lower_end), BYTES // 2)):
                row = amx.in_turns(code, amx.rounded(code, *pair))
                amx.store(code, row, code.add(right, index(at)))
        return context.get_dummy_value()

    @intrinsic
    def on_two_rows(typing, weight, gradient, m, v, settings, left, right):
        return types.void(*[types.intp] * 7), emit

    return on_two_rows


_adam_left, _adam_left_and_right = _adam_on_two_rows(both=False), _adam_on_two_rows(both=True)


@njit(**PART)
def _update(weight, d_left, in_right, count, m, v, gradients, settings, left, right):
    """Adam on the blocks of weight (D, D), with their forms; right may be empty.

    The gradient is the left blocks (D, P) times the right blocks (P, D), P being `count` blocks.
    A block's product comes one block ahead of Adam: both units work at once.
    """
    across = int(np.sqrt(len(weight)))
    for n in range(len(weight) + 1):
        if n < len(weight):
            block_product(
                d_left.ctypes.data + n // across * count * BYTES, BYTES,
                in_right.ctypes.data + n % across * count * BYTES, BYTES, count,
                gradients[n % 2].ctypes.data, SIDE * 4,
            )  # fmt: skip
        if n == 0:
            continue
        done, slope = (n - 1) * BLOCK * 4, gradients[(n - 1) % 2].ctypes.data
        w_at, m_at, v_at = weight.ctypes.data + done, m.ctypes.data + done, v.ctypes.data + done
        left_at = left.ctypes.data + (n - 1) * BYTES
        right_at = right.ctypes.data + ((n - 1) % across * across + (n - 1) // across) * BYTES
        for row in range(0, SIDE, 2):
            at = row * SIDE * 4
            places = w_at + at, slope + at, m_at + at, v_at + at, settings.ctypes.data
            if len(right):
                _adam_left_and_right(*places, left_at + row * 64, right_at + row * 32)
            else:
                _adam_left(*places, left_at + row * 64, 0)


@njit(**PART)
def _left_blocks(x, out):
    """The blocks of x (M, K), row by row of blocks, as left tiles in out."""
    row, across = x.shape[1] * 4, x.shape[1] // SIDE
    for r in range(len(x) // SIDE):
        for c in range(across):
            place = out.ctypes.data + (r * across + c) * BYTES
            to_left(x.ctypes.data + r * SIDE * row + c * SIDE * 4, row, place)


@njit(**PART)
def _right_blocks(x, out):
    """The blocks of x (K, N), column by column of blocks, as right tiles in out."""
    row, down = x.shape[1] * 4, len(x) // SIDE
    for c in range(x.shape[1] // SIDE):
        for r in range(down):
            place = out.ctypes.data + (c * down + r) * BYTES
            to_right(x.ctypes.data + r * SIDE * row + c * SIDE * 4, row, place)


@njit(**PART)
def _to_left_block(blocks, n, out):
    to_left(blocks.ctypes.data + n * BLOCK * 4, SIDE * 4, out.ctypes.data + n * BYTES)


@njit(**PART)
def _to_right_block(blocks, n, across, out):
    """Block n, counted by rows of `across` blocks, to its place in columns of them."""
    place = out.ctypes.data + (n % across * across + n // across) * BYTES
    to_right(blocks.ctypes.data + n * BLOCK * 4, SIDE * 4, place)


@njit(**PART)
def _to_blocks(weight, blocks):
    """weight (D, D) as blocks of 32 x 32, row by row of blocks."""
    across = len(weight) // SIDE
    for n in range(len(blocks)):
        row, column = n // across * SIDE, n % across * SIDE
        for i in range(SIDE):
            for j in range(SIDE):
                blocks[n, i * SIDE + j] = weight[row + i, column + j]


@njit(**PART)
def _from_blocks(blocks, weight):
    across = len(weight) // SIDE
    for n in range(len(blocks)):
        row, column = n // across * SIDE, n % across * SIDE
        for i in range(SIDE):
            for j in range(SIDE):
                weight[row + i, column + j] = blocks[n, i * SIDE + j]
