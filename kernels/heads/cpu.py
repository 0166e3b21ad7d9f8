"""Heads and their gradients for numba kernels; each head's own file says what it computes.

Activations are feature-major, (D, p): n rows or classes as columns, padded by p - n columns that
are never read, as kernels/cpu/tile.py requires. A sum over D is then vector arithmetic over
columns. `row` and `gradient` are one adapter's numbers, laid out as in kernels/heads/plain.py;
`spare` is as large as the larger of x and h, and holds clip-adapter's outer layer from `forward`
to `backward`.
"""

from numba import njit

from kernels.cpu.math import LEAST, PART, SPLICED, F, exp, tanh
from kernels.cpu.rows import by_rows, outer
from kernels.cpu.tile import matmul, matmul_t, matrix
from kernels.heads import attention, clip_adapter, cosine, linear
from kernels.heads.clip_adapter import RATIO

ATTENTION, CLIP_ADAPTER = attention.HEAD.numba, clip_adapter.HEAD.numba
LINEAR, COSINE = linear.HEAD.numba, cosine.HEAD.numba
NEW, OLD = F(RATIO), F(1 - RATIO)


@njit(**SPLICED)
def forward(head, row, x, h, u, spare, top):
    """u = the head's output for x, not normalized; x (D, p) is raw for attention, else unit length.

    h (hidden, p) is kept for `backward`; top (at least p,) is scratch.
    """
    if head == ATTENTION:
        _attention(row, x, h, u, top)
    elif head == CLIP_ADAPTER:
        _clip_adapter(row, x, h, u, spare)
    elif head == LINEAR:
        matmul(matrix(row, 0, len(u), len(u)), x, u)
        _add(u, row[len(u) * len(u) :])
    else:  # low-rank
        matmul(matrix(row, 0, len(h), len(u)), x, h)
        matmul(matrix(row, len(h) * len(u), len(u), len(h)), h, u)
        for d in range(u.shape[0]):
            for i in range(u.shape[1]):
                u[d, i] += x[d, i]


@njit(**SPLICED)
def backward(head, row, n, x, h, u, d_u, spare, across, gradient, widened):
    """gradient (P,) = d loss / d row, from d_u = d loss / d u, which is overwritten.

    Only the first n columns count. Scratch: across (2, n times the larger padded width) for x and h
    by rows, widened for `outer`.

    attention     d_s = d_u u, d_W2 = d_s h^T, d_b2 = sum d_s, d_a = (W2^T d_s) (1 - h^2),
                  d_W1 = d_a x^T, d_b1 = sum d_a
    clip-adapter  d_o = 0.2 d_u [o > 0], d_W2 = d_o h^T, d_W1 = ((W2^T d_o) [h > 0]) x^T
    linear        d_W = d_u x^T, d_b = sum d_u
    low-rank      d_B = d_u (A x)^T, d_A = (B^T d_u) x^T
    """
    width, size = u.shape
    x_by_row = by_rows(x, n, across[0])
    if head == LINEAR:
        outer(d_u, x_by_row, matrix(gradient, 0, width, width), widened)
        _sum(d_u, n, gradient[width * width :])
        return
    hidden = len(h)
    d_h = spare[:hidden]
    first = hidden * width
    second = first + (width if head == ATTENTION else 0)
    if head == ATTENTION:
        for d in range(width):
            for i in range(size):
                d_u[d, i] *= u[d, i]
        _sum(d_u, n, gradient[second + first :])
    elif head == CLIP_ADAPTER:
        for d in range(width):
            for i in range(size):
                d_u[d, i] *= NEW if spare[d, i] > F(0) else F(0)
    d_w = matrix(gradient, second, width, hidden)
    outer(d_u, by_rows(h, n, across[1]), d_w, widened)
    matmul_t(matrix(row, second, width, hidden), d_u, d_h)
    if head == ATTENTION:
        for d in range(hidden):
            for i in range(size):
                d_h[d, i] *= F(1) - h[d, i] * h[d, i]
        _sum(d_h, n, gradient[first:second])
    elif head == CLIP_ADAPTER:
        for d in range(hidden):
            for i in range(size):
                d_h[d, i] *= F(1) if h[d, i] > F(0) else F(0)
    outer(d_h, x_by_row, matrix(gradient, 0, hidden, width), widened)


@njit(**SPLICED)
def _attention(row, x, h, u, top):
    width, size = u.shape
    first = width * width
    b1 = row[first : first + width]
    matmul(matrix(row, 0, width, width), x, h)
    for d in range(width):
        for i in range(size):
            h[d, i] = tanh(h[d, i] + b1[d])
    matmul(matrix(row, first + width, width, width), h, u)
    _add(u, row[2 * first + width :])
    top[:size] = LEAST
    for d in range(width):
        for i in range(size):
            top[i] = max(top[i], u[d, i])
    for d in range(width):
        for i in range(size):
            u[d, i] = exp(u[d, i] - top[i]) * x[d, i]


@njit(**SPLICED)
def _clip_adapter(row, x, h, u, outside):
    width, size = u.shape
    hidden = len(h)
    matmul(matrix(row, 0, hidden, width), x, h)
    for d in range(hidden):
        for i in range(size):
            h[d, i] = max(h[d, i], F(0))
    matmul(matrix(row, hidden * width, width, hidden), h, outside[:width])
    for d in range(width):
        for i in range(size):
            u[d, i] = NEW * max(outside[d, i], F(0)) + OLD * x[d, i]


@njit(**PART)
def _add(values, bias):
    for d in range(values.shape[0]):
        for i in range(values.shape[1]):
            values[d, i] += bias[d]


@njit(**PART)
def _sum(values, n, sums):
    for d in range(values.shape[0]):
        total = F(0)
        for i in range(n):
            total += values[d, i]
        sums[d] = total
