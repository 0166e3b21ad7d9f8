"""contrastive on a GPU without an N x N matrix: tiles of logits, computed twice.

Forward: each program computes a tile of Z in registers and stores the tile's row and column maxima
and sums of exponentials; a second kernel combines them. Backward: G for a chunk of rows, then two
matrix products. This takes 8 N^2 D operations instead of 6 N^2 D with Z stored, but saves some
thirteen passes over float32 N x N matrices. No atomics and no locks: every sum has one order.

Fast mode takes bfloat16 operands, keeps logits in float32 registers, and passes G in bfloat16 to
cuBLAS, which gets closer to peak in such products than a Triton kernel. Exact mode represents x, y
and G as two scaled float16 parts each, computed once, and takes three products of them: float32's
error at twice the rate of TF32, whose three products could not reach N = 32k in 25 ms. The
gradients' products need a kernel of their own: cuBLAS has no such mode, its float32 runs at an
eighth of TF32's rate by the data sheets, and three products of two bfloat16 parts have 16 times
float32's error (docs/kernels-gpu.md).
"""

import functools
import math

import torch
import triton
from torch import Tensor

from kernels.contrastive.gpu_kernels import combine, gradient, multiply, statistics

# docs/kernels-gpu.md lists registers and shared memory for each.
WIDE = {
    "fast": {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3},
    "exact": {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 3},
    "multiply": {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 3},
}
"""For compute capability 9 and 10, whose tensor cores read operands from shared memory."""
NARROW = {
    "fast": {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 4},
    "exact": {"BM": 128, "BN": 64, "BK": 32, "num_warps": 8, "num_stages": 3},
    "multiply": {"BM": 128, "BN": 64, "BK": 32, "num_warps": 8, "num_stages": 3},
}
"""For the others, which load operands into registers; 99 KiB of shared memory per block."""
COMBINE = {"BN": 256, "num_warps": 4, "num_stages": 1}
UNFUSED = {"enable_fp_fusion": False}
"""A logit is a product from which two kernels subtract a log-sum. Fused into one multiply-add, it
differs from the number whose log-sum was taken: a probability of 1 came out 2.6e-6 off."""
CHUNK = 4096
"""Maximum rows of G held: 32 x 4 programs multiply it at D = 512, one for each multiprocessor."""


def forward(
    image: Tensor, text: Tensor, scale: Tensor | float, precision: str, memory: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), and log2 of the sums of exponentials over Z's rows (N,) and columns (N,)."""
    with torch.cuda.device_of(image):  # Triton launches on the current device, not the tensors'
        return _forward(image, text, scale, precision)


def _forward(
    image: Tensor, text: Tensor, scale: Tensor | float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    x, y, units = _operands(image, text, precision)
    scale = _on_device(scale, x.device)
    tile = tiles(x.device)[precision]
    count, width = image.shape
    above, left = triton.cdiv(count, tile["BM"]), triton.cdiv(count, tile["BN"])
    by_row = torch.empty(2, left, count, device=x.device)  # maxima, sums
    by_column = torch.empty(2, above, count, device=x.device)
    sums = torch.empty(2, count, device=x.device)
    at_pair = torch.empty(count, device=x.device)
    statistics[(above * left,)](
        x, y, units, *by_row, *by_column, at_pair, scale, count, width,
        **tile, **UNFUSED,
    )  # fmt: skip
    for parts, out in zip((by_row, by_column), sums, strict=True):
        grid = (triton.cdiv(count, COMBINE["BN"]),)
        combine[grid](*parts, out, count, parts.shape[1], **COMBINE)
    loss = (sums[0] + sums[1] - 2 * at_pair).mean() * (math.log(2) / 2)
    return loss, sums[0], sums[1]


def backward(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    by_row: Tensor,
    by_column: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """d loss / d image and d loss / d text, float32, from chunks of G's rows."""
    with torch.cuda.device_of(image):
        return _backward(image, text, scale, by_row, by_column, precision)


def _backward(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    by_row: Tensor,
    by_column: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor]:
    x, y, units = _operands(image, text, precision)
    scale = _on_device(scale, x.device)
    tile = tiles(x.device)[precision]
    count, width = image.shape
    rows = min(CHUNK, tile["BM"] * triton.cdiv(count, 4 * tile["BM"]))
    stride = 16 * triton.cdiv(count, 16)  # aligns rows of G for 16-byte loads
    fast, share = precision == "fast", 0.5 / count
    chunk = torch.empty((1 if fast else 2) * rows, stride, dtype=x.dtype, device=x.device)
    d_image = torch.empty(count, width, device=x.device)
    d_text = torch.zeros(count, width, device=x.device)
    for start in range(0, count, rows):
        here = min(rows, count - start)
        gradient[(triton.cdiv(here, tile["BM"]) * triton.cdiv(count, tile["BN"]),)](
            x, y, units, by_row, by_column, chunk, scale, share,
            start, here, count, stride, width, **tile, **UNFUSED,
        )  # fmt: skip
        g, part = chunk[:here, :count], slice(start, start + here)
        if fast:
            d_image[part] = _product(g, y)
            _add_product(g.mT, x[part], d_text)
        else:
            _multiply(chunk, y, units[1], scale, share, d_image[part], turned=False, add=False)
            _multiply(chunk, x[:, part], units[0], scale, share, d_text, turned=True, add=True)
    return d_image, d_text


def tiles(device: torch.device) -> dict[str, dict[str, int]]:
    """Tile sizes, warps and stages of each kernel on `device`."""
    return WIDE if generation(device) in (9, 10) else NARROW


def generation(device: torch.device) -> int:
    """A GPU's major compute capability; 9 under the interpreter."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


def _operands(image: Tensor, text: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """x and y as the kernels read them: (N, D) bfloat16; exact: (2, N, D) float16, units (2,).

    A power of two scales each side's largest number to 2^14 or above. x = unit (high + 2^-11 low)
    is then accurate to 2^-22 of each number, down to numbers of 2^-28 of the largest.
    """
    if image.dtype == torch.float64:
        raise ValueError(
            "contrastive: backend 'triton' computes in float32; pass .float(), or backend='torch'"
        )
    if precision == "fast":
        x, y = (side.detach().to(torch.bfloat16).contiguous() for side in (image, text))
        return x, y, None
    parts, units = zip(*map(_parts, (image, text)), strict=True)
    return *parts, torch.stack(units)


def _parts(v: Tensor) -> tuple[Tensor, Tensor]:
    """(2, N, D) float16 and the unit () float32; the CPU reads no value."""
    v = v.detach().float()
    exponent = torch.frexp(v.abs().amax()).exponent.clamp(-100, 128)
    v = torch.ldexp(v, 15 - exponent)
    high = v.half()
    low = (v - high.float()) * 2**11
    return torch.stack([high, low.half()]), torch.ldexp(torch.ones_like(v[0, 0]), exponent - 15)


def _on_device(scale: Tensor | float, device: torch.device) -> Tensor:
    """() of any floating dtype; a number is filled on the device: a copy would not be captured."""
    if isinstance(scale, Tensor):
        return scale
    return torch.full((), scale, dtype=torch.float64, device=device)


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # under the interpreter


def _add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out += a @ b, fused into the product where torch supports it."""
    if a.is_cuda and _adds_in_product(a.device):
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out += _product(a, b)


@functools.cache
def _adds_in_product(device: torch.device) -> bool:
    """Whether torch takes an addend of another dtype than the factors (older ones do not)."""
    one = torch.zeros(16, 16, dtype=torch.bfloat16, device=device)
    try:
        torch.addmm(one.float(), one, one, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True


def _multiply(
    g: Tensor, other: Tensor, unit: Tensor, scale: Tensor, share: float, out: Tensor, *,
    turned: bool, add: bool,
) -> None:  # fmt: skip
    """out = G @ other (turned: G.mT @ other), or out plus that; both factors in two parts."""
    tile = tiles(g.device)["multiply"]
    inner, (rows, width) = other.shape[1], out.shape
    grid = (triton.cdiv(rows, tile["BM"]) * triton.cdiv(width, tile["BN"]),)
    multiply[grid](
        g, *other, out, unit, scale, share, rows, inner, g.stride(0), width, turned, add, **tile
    )
