"""contrastive on a GPU without an N x N matrix: tiles of logits, made twice.

Forward: a program makes a tile of Z in registers and leaves the tile's row and column maxima and
sums of exponentials; a second kernel adds those up. Backward: G for a chunk of rows, then two
matrix products. 8 N^2 D operations against the 6 N^2 D that keeping Z needs; what is saved are
some thirteen passes over float32 N x N matrices. No atomics and no locks: one order of all sums.

Fast mode takes bfloat16 operands, keeps logits in float32 registers, and gives G in bfloat16 to
cuBLAS, which reaches more of the hardware in such products than a Triton kernel does. Exact mode
multiplies the gradients in a kernel of its own, with the three TF32 products of all other exact
ones: cuBLAS has no such mode, its float32 is at most a sixth of TF32's rate, and three bfloat16
products leave an error 15 times float32's (2^-17 a factor).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backends
from kernels.adapter_triton import LEAST, PRECISION

# docs/kernels-gpu.md has registers and shared memory of each.
WIDE = {
    "fast": {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3},
    "exact": {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 3},
    "multiply": {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 3},
}
"""For compute capability 9 and 10, whose tensor cores read shared memory themselves."""
NARROW = {
    "fast": {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 4},
    "exact": {"BM": 128, "BN": 64, "BK": 32, "num_warps": 8, "num_stages": 3},
    "multiply": {"BM": 128, "BN": 64, "BK": 32, "num_warps": 8, "num_stages": 3},
}
"""For the others, which load operands into registers and have 99 KiB of shared memory a block."""
COMBINE = {"BN": 256, "num_warps": 4, "num_stages": 1}
INTERPRETED = tl.constexpr(backends.INTERPRETED)
GROUP = tl.constexpr(8)
"""Row tiles whose programs follow each other, so that they find operands in L2."""
CHUNK = 4096
"""Rows of G held at most: 32 x 4 programs multiply it at D = 512, one for each multiprocessor."""


def forward(
    image: Tensor, text: Tensor, scale: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), and log2 of the exponentials' sums over Z's rows (N,) and columns (N,)."""
    x, y = _operands(image, text, precision)
    tile = tiles(x.device)[precision]
    count, width = x.shape
    above, left = triton.cdiv(count, tile["BM"]), triton.cdiv(count, tile["BN"])
    by_row = torch.empty(2, left, count, device=x.device)  # peaks, sums
    by_column = torch.empty(2, above, count, device=x.device)
    sums = torch.empty(2, count, device=x.device)
    at_pair = torch.empty(count, device=x.device)
    statistics[(above * left,)](
        x, y, *by_row, *by_column, at_pair, scale * math.log2(math.e), count, width, **tile
    )
    for parts, out in zip((by_row, by_column), sums, strict=True):
        grid = (triton.cdiv(count, COMBINE["BN"]),)
        combine[grid](*parts, out, count, parts.shape[1], **COMBINE)
    loss = (sums[0] + sums[1] - 2 * at_pair).mean() * (math.log(2) / 2)
    return loss, sums[0], sums[1]


def backward(
    image: Tensor, text: Tensor, scale: float, by_row: Tensor, by_column: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """d loss / d image and d loss / d text, float32, from chunks of G's rows."""
    x, y = _operands(image, text, precision)
    tile = tiles(x.device)[precision]
    count, width = x.shape
    rows = min(CHUNK, tile["BM"] * triton.cdiv(count, 4 * tile["BM"]))
    stride = 16 * triton.cdiv(count, 16)  # rows of G begin where 16-byte loads can
    chunk = torch.empty(rows, stride, dtype=x.dtype, device=x.device)
    d_image = torch.empty(count, width, device=x.device)
    d_text = torch.zeros(count, width, device=x.device)
    for start in range(0, count, rows):
        here = min(rows, count - start)
        gradient[(triton.cdiv(here, tile["BM"]) * triton.cdiv(count, tile["BN"]),)](
            x, y, by_row, by_column, chunk, scale * math.log2(math.e), scale / (2 * count),
            start, here, count, stride, width, **tile,
        )  # fmt: skip
        g, part = chunk[:here, :count], slice(start, start + here)
        if precision == "fast":
            d_image[part] = _product(g, y)
            d_text += _product(g.mT, x[part])
        else:
            _multiply(g, y, d_image[part], turned=False, add=False)
            _multiply(g, x[part], d_text, turned=True, add=True)
    return d_image, d_text


def tiles(device: torch.device) -> dict[str, dict[str, int]]:
    """Tiles, warps and stages of each kernel on `device`."""
    return WIDE if generation(device) in (9, 10) else NARROW


def generation(device: torch.device) -> int:
    """The first number of a GPU's compute capability; 9 under the interpreter."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


def _operands(image: Tensor, text: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    if image.dtype == torch.float64:
        raise ValueError(
            "contrastive: backend 'triton' computes in float32; pass .float(), or backend='torch'"
        )
    dtype = torch.bfloat16 if precision == "fast" else torch.float32
    return image.detach().to(dtype).contiguous(), text.detach().to(dtype).contiguous()


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # under the interpreter


def _multiply(g: Tensor, other: Tensor, out: Tensor, *, turned: bool, add: bool) -> None:
    """out = g @ other (turned: g.mT @ other), or that added to out."""
    tile = tiles(g.device)["multiply"]
    inner, (rows, width) = len(other), out.shape
    grid = (triton.cdiv(rows, tile["BM"]) * triton.cdiv(width, tile["BN"]),)
    multiply[grid](g, other, out, rows, inner, g.stride(0), width, turned, add, **tile)


@triton.jit
def _logits(x, y, i, j, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
            BK: tl.constexpr):  # fmt: skip
    """(BM, BN) x[i] @ y[j].T."""
    x_rows = x + i[:, None] * D
    y_rows = y + j[None, :] * D
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        if D % BK == 0:
            a, b = tl.load(x_rows + k[None, :]), tl.load(y_rows + k[:, None])
        else:
            a = tl.load(x_rows + k[None, :], mask=(k < D)[None, :], other=0.0)
            b = tl.load(y_rows + k[:, None], mask=(k < D)[:, None], other=0.0)
        if INTERPRETED:  # it would multiply the bits of bfloat16 as integers
            a, b = a.to(tl.float32), b.to(tl.float32)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    return sums


@triton.jit
def _place(program, rows, columns):
    """Row and column of a program's tile: GROUP rows of tiles together, column by column."""
    group = program // (GROUP * columns)
    height = tl.minimum(rows - group * GROUP, GROUP)
    inside = program % (GROUP * columns)
    return group * GROUP + inside % height, inside // height


@triton.jit
def statistics(
    x, y, row_peaks, row_sums, column_peaks, column_sums, at_pair, scale2, count,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Of a tile of Z / ln 2: maxima and sums of 2^(z - maximum), each way; at_pair its diagonal.

    row_* (N / BN, N) by the tile's place in the row, column_* (N / BM, N) in the column.
    """
    rows = tl.cdiv(count, BM)
    above, left = _place(tl.program_id(0), rows, tl.cdiv(count, BN))
    i = above * BM + tl.arange(0, BM)
    j = left * BN + tl.arange(0, BN)
    z = _logits(x, y, tl.minimum(i, count - 1), tl.minimum(j, count - 1), D, BM, BN, BK) * scale2
    both = (i < count)[:, None] & (j < count)[None, :]
    z = tl.where(both, z, LEAST)
    if (above * BM < (left + 1) * BN) & (left * BN < (above + 1) * BM):  # the diagonal is in it
        pair = tl.sum(tl.where(i[:, None] == j[None, :], z, 0.0), 1)
        mask = (i < count) & (i >= left * BN) & (i < (left + 1) * BN)
        tl.store(at_pair + i, pair, mask=mask)
    peak = tl.max(z, 0)
    at = above.to(tl.int64) * count + j
    tl.store(column_peaks + at, peak, mask=j < count)
    tl.store(column_sums + at, tl.sum(tl.exp2(z - peak[None, :]), 0), mask=j < count)
    peak = tl.max(z, 1)
    at = left.to(tl.int64) * count + i
    tl.store(row_peaks + at, peak, mask=i < count)
    tl.store(row_sums + at, tl.sum(tl.exp2(z - peak[:, None]), 1), mask=i < count)


@triton.jit
def combine(peaks, sums, out, count, tiles, BN: tl.constexpr):
    """out = log2 of the sum over tiles of sums 2^peaks; both (tiles, N), tiles in their order."""
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    peak = tl.full((BN,), LEAST, tl.float32)
    for tile in range(tiles):
        at = tl.cast(tile, tl.int64) * count + i
        peak = tl.maximum(peak, tl.load(peaks + at, mask=i < count, other=LEAST))
    total = tl.zeros((BN,), tl.float32)
    for tile in range(tiles):
        at = tl.cast(tile, tl.int64) * count + i
        here = tl.load(peaks + at, mask=i < count, other=LEAST)
        total += tl.load(sums + at, mask=i < count, other=1.0) * tl.exp2(here - peak)
    tl.store(out + i, peak + tl.log2(total), mask=i < count)


@triton.jit
def gradient(
    x, y, by_row, by_column, chunk, scale2, factor, first, here, count, stride,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """chunk = factor * (2^(z - by_row) + 2^(z - by_column) - 2 I) of rows first..first+here-1."""
    above, left = _place(tl.program_id(0), tl.cdiv(here, BM), tl.cdiv(count, BN))
    local = above * BM + tl.arange(0, BM)
    i = first + local
    j = left * BN + tl.arange(0, BN)
    z = _logits(x, y, tl.minimum(i, count - 1), tl.minimum(j, count - 1), D, BM, BN, BK) * scale2
    rows = tl.load(by_row + i, mask=i < count, other=-LEAST)
    columns = tl.load(by_column + j, mask=j < count, other=-LEAST)
    g = tl.exp2(z - rows[:, None]) + tl.exp2(z - columns[None, :])
    g = (g - tl.where(i[:, None] == j[None, :], 2.0, 0.0)) * factor
    chunk += above.to(tl.int64) * BM * stride
    at = chunk + tl.arange(0, BM)[:, None] * stride + j[None, :]
    mask = (local < here)[:, None] & (j < count)[None, :]
    tl.store(at, g.to(chunk.dtype.element_ty), mask=mask)


@triton.jit
def multiply(
    a, b, out, rows, inner, stride,
    W: tl.constexpr, TURNED: tl.constexpr, ADD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out = a @ b, or out + a @ b: a (rows, inner), TURNED (inner, rows); b (inner, W)."""
    COLUMNS: tl.constexpr = (W + BN - 1) // BN
    i = tl.program_id(0) // COLUMNS * BM + tl.arange(0, BM)
    n = tl.program_id(0) % COLUMNS * BN + tl.arange(0, BN)
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, inner, BK):
        k = start + tl.arange(0, BK)
        if TURNED:
            a_at = a + k.to(tl.int64)[None, :] * stride + i[:, None]
        else:
            a_at = a + i.to(tl.int64)[:, None] * stride + k[None, :]
        left = tl.load(a_at, mask=(i < rows)[:, None] & (k < inner)[None, :], other=0.0)
        right = tl.load(
            b + k[:, None] * W + n[None, :],
            mask=(k < inner)[:, None] & (n < W)[None, :], other=0.0,
        )  # fmt: skip
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    at = out + i[:, None] * W + n[None, :]
    mask = (i < rows)[:, None] & (n < W)[None, :]
    if ADD:
        sums += tl.load(at, mask=mask, other=0.0)
    tl.store(at, sums, mask=mask)
