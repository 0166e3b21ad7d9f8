"""Triton code shared by adapter_steps and adapter_top1: a linear layer of many adapters.

Grids have one axis, so that no count hits CUDA's limit of 65,535 on the others. Widths and strides
are compile-time constants, which lets the compiler prove that loads are aligned.
"""

import triton
import triton.language as tl

PRECISION = tl.constexpr("tf32x3")
"""Three tensor-core products of 11-bit parts per float32 product: accurate to about 2^-22, and
faster than the plain float32 units. Always passed: Triton's default is one product (2^-11)."""
LEAST = tl.constexpr(-1e30)
"""Stands in for minus infinity where infinity - infinity must not give NaN."""
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def halves(x):
    """x as two TF32 numbers, rounded value and remainder, with a relative error below 2^-22.

    An add and a mask replace the compiler's own split, which takes eight instructions.
    """
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def add_product(sums, a, b):
    """sums + a @ b by three TF32 products, accumulated in the tensor core for this block only.

    Its adder truncates: over all of D = 512 the sum would have 20 times float32's error.
    """
    a_high, a_low = halves(a)
    b_high, b_low = halves(b)
    block = tl.dot(a_low, b_high, input_precision="tf32")
    block = tl.dot(a_high, b_low, block, input_precision="tf32")
    return sums + tl.dot(a_high, b_high, block, input_precision="tf32")


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Wait until the previous launch has ended and its writes are visible; let the next one start.

    Every program of every launch calls this before it reads or writes what another launch writes.
    The next launch then starts early but waits here too, so launches write in their order. Never in
    a loop: the compiler prefetches a loop's loads, past the wait (triton issue 11905).
    """
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def layer(
    inputs, rows, owners, weight, bias, out, tops,
    WEIGHT_STRIDE: tl.constexpr, BIAS_STRIDE: tl.constexpr, D: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):  # fmt: skip
    """One layer of the adapters on blocks of BM rows; each program computes BM x BN outputs.

    First layer (rows given):   out = tanh(inputs[rows] @ weight.T + bias), inputs 0 for row -1
    Second layer (rows None):   out = inputs @ weight.T + bias; tops: its row maxima per BN columns
    Block b belongs to adapter owners[b], or b // PARTS without owners. The product is computed
    transposed, as weight @ inputs.T: tensor cores of compute capability 9 take 64 rows, and a batch
    has fewer.
    """
    COLUMNS: tl.constexpr = (D + BN - 1) // BN
    block = (tl.program_id(0) // COLUMNS).to(tl.int64)
    column = tl.program_id(0) % COLUMNS
    if owners is None:
        lane = block // PARTS
    else:
        lane = tl.load(owners + block).to(tl.int64)
    i = tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    if rows is None:
        x_rows = inputs + block * BM * D + i[None, :] * D
        there = i[None, :] >= 0
    else:
        row = tl.load(rows + block * BM + i)
        x_rows = inputs + tl.maximum(row, 0).to(tl.int64)[None, :] * D
        there = row[None, :] >= 0
    wait_for_previous(OVERLAP)
    w_rows = weight + lane * WEIGHT_STRIDE + n[:, None] * D
    sums = tl.zeros((BN, BM), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(w_rows + k[None, :], mask=(n < D)[:, None] & (k < D)[None, :], other=0.0)
        x = tl.load(x_rows + k[:, None], mask=there & (k < D)[:, None], other=0.0)
        sums = add_product(sums, w, x)
    sums += tl.load(bias + lane * BIAS_STRIDE + n, mask=n < D, other=0.0)[:, None]
    if rows is None:
        top = tl.max(tl.where((n < D)[:, None], sums, LEAST), 0)
        tl.store(tops + (block * BM + i) * COLUMNS + column, top)
    else:
        sums = 1.0 - 2.0 / (tl.exp2(sums * (2 * LOG2_E)) + 1.0)  # tanh
    tl.store(out + block * BM * D + i[None, :] * D + n[:, None], sums, mask=(n < D)[:, None])


@triton.jit
def row_tops(tops, first, COLUMNS: tl.constexpr, BM: tl.constexpr, PADDED: tl.constexpr):
    """(BM,) maxima of rows first..first+BM-1 of the second layer's output."""
    c = tl.arange(0, PADDED)
    i = first + tl.arange(0, BM)
    found = tl.load(
        tops + i[:, None] * COLUMNS + c[None, :], mask=(c < COLUMNS)[None, :], other=LEAST
    )
    return tl.max(found, 1)
