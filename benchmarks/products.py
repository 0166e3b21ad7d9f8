"""The numba kernels' own matrix products against torch's, at the shapes of a training step."""

import numpy as np
import torch

from benchmarks.compare import Case, Fault, Work, compare, distance
from benchmarks.rows import Row
from kernels.cpu.threads import run_all

CPU = torch.device("cpu")
WIDTH, BATCH, TIMES = 512, 32, 50


def run(ceilings: dict[str, float], quick: bool) -> list[Row | Fault]:
    """On all threads: torch splits one product among them, ours run one per thread, like lanes."""
    from kernels.cpu.tile import matmul, matmul_t

    draw = np.random.default_rng(0)
    weight = draw.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    thin = draw.normal(size=(WIDTH, BATCH)).astype(np.float32)
    rows = _product("w @ x", matmul, weight, weight, thin, ceilings, quick)
    rows += _product("w.T @ d", matmul_t, weight, weight.T, thin, ceilings, quick)
    flat = np.ascontiguousarray(thin.T)
    return rows + _product("d @ x.T", matmul, thin, thin, flat, ceilings, quick)


def _product(
    name: str, product, given: np.ndarray, left: np.ndarray, right: np.ndarray,
    ceilings: dict[str, float], quick: bool,
) -> list[Row | Fault]:  # fmt: skip
    """left @ right; `given` is the argument that `product` takes for left."""
    truth = torch.from_numpy(left.astype(float) @ right)
    plain_left, plain_right = torch.from_numpy(left), torch.from_numpy(right)
    shape, threads = truth.shape, torch.get_num_threads()
    plain_error = distance((plain_left @ plain_right,), (truth,))
    out = np.empty(shape, np.float32)
    product(given, right, out)
    error = distance((torch.from_numpy(out),), (truth,))

    def work(thread: int, own: np.ndarray) -> None:
        for _ in range(TIMES):
            product(given, right, own)

    def ours() -> None:
        run_all(work, range(threads), lambda: np.empty(shape, np.float32))

    def plain() -> None:
        own = torch.empty(shape)
        for _ in range(TIMES):
            torch.mm(plain_left, plain_right, out=own)

    cases = {
        "torch.mm": Case(plain, TIMES, plain_error),
        "numba tile": Case(ours, TIMES * threads, error, ours=True),
    }
    flops = 2 * WIDTH * WIDTH * BATCH
    work_done = Work("product", f"{name}, D {WIDTH}, B {BATCH}", "product", flops)
    return compare(work_done, cases, plain_error, ceilings, 3 if quick else 15, CPU)
