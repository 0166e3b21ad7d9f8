"""Every shipped configuration of the Triton kernels, compiled for GPUs that need not be here.

A kernel that spills registers or asks for more shared memory than there is fails here and not at
a user's; so does one that lost its tensor-core instructions, and one whose compiler fused a logit
with the log-sum that is subtracted from it (kernels/contrastive/gpu.py, UNFUSED). `python -m
tests.kernels.test_triton_aot` prints the tables of docs/kernels-gpu.md.
"""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from tests.packages import need

need("triton")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from kernels.adapter import AdamSettings, AdapterState  # noqa: E402
from kernels.answers import gpu as adapter_top1_triton  # noqa: E402
from kernels.contrastive import gpu as contrastive_triton  # noqa: E402
from kernels.gpu.layer import wait_for_previous  # noqa: E402
from kernels.step import gpu as adapter_step_triton  # noqa: E402
from tests.kernels.aot import Compiled, Launch, compile_for, launched  # noqa: E402

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
WITHOUT_PRODUCTS = {"combine"}
"""Kernels in which no tensor-core instruction is meant."""
TURNED = {"layer", "hidden_gradients"}
"""Kernels that give the weights' 64 rows, and not the batch's 16 or 32, to the tensor cores."""

CONSTANTS = {"features", "rows", "labels", "text"}
"""What no launch of a round writes."""


def step(batch: int, width: int, overlap: bool = False) -> list[Launch]:
    """All kernels of two training steps; adapters as views of one row a lane."""
    lanes, square = 2, width * width
    flat = torch.zeros(lanes, 2 * (square + width))
    w1, b1, w2, b2 = flat.split([square, width, square, width], dim=1)
    shape = (lanes, width, width)
    adapters = AdapterState(w1.view(shape), b1, w2.view(shape), b2)
    settings = AdamSettings(*torch.full((5, lanes), 0.5, dtype=torch.float64))
    return launched(
        lambda: adapter_step_triton.adapter_steps(
            adapters, torch.zeros(9, width), torch.zeros(9, dtype=torch.int64),
            torch.zeros(7, width), torch.zeros(2, lanes, batch, dtype=torch.int32), settings, 100.0,
            overlap,
        )
    )  # fmt: skip


def top1(width: int) -> list[Launch]:
    """All kernels of an evaluation."""
    shapes = ((2, width, width), (2, width))
    adapters = AdapterState(*(torch.zeros(shape) for shape in (*shapes, *shapes)))
    rows = [torch.arange(9)] * 2
    return launched(
        lambda: adapter_top1_triton.adapter_top1(
            adapters, torch.zeros(9, width), torch.zeros(7, width), rows
        )
    )


def contrastive(precision: str, width: int, count: int = 32) -> list[Launch]:
    """All kernels of a loss and its gradients; a count of 1 becomes a constant, as in Triton."""
    x = torch.zeros(count, width)

    def both() -> None:
        contrastive_triton.forward(x, x, 100.0, precision)
        contrastive_triton.backward(x, x, 100.0, x[:, 0].clone(), x[:, 0].clone(), precision)

    return launched(both)


# The released shape on every architecture; others where a fault would show on any.
SHIPPED = [(architecture, "step", (32, 512)) for architecture in SHARED_MEMORY]
SHIPPED += [(90, "step", shape) for shape in ((2, 64), (21, 500), (128, 1024))]
SHIPPED += [(architecture, "top1", (512,)) for architecture in SHARED_MEMORY]
SHIPPED += [(90, "top1", (500,))]
SHIPPED += [
    (architecture, "contrastive", (precision, 512))
    for architecture in SHARED_MEMORY
    for precision in ("fast", "exact")
]
SHIPPED += [(90, "contrastive", ("fast", 500)), (90, "contrastive", ("exact", 64, 1))]
SHIPPED += [(90, "contrastive", ("fast", 64, 129))]


def launches_of(architecture: int, op: str, shape: tuple) -> list[Launch]:
    """What `op` launches on that architecture."""
    with mock.patch.object(contrastive_triton, "generation", lambda _: architecture // 10):
        return globals()[op](*shape)


def faults(launch: Launch, found: Compiled, architecture: int) -> list[str]:
    """What is wrong with it, in words."""
    wrong = []
    if found.stack or found.spills:
        wrong.append(f"{found.stack} bytes of stack, {found.spills} spills")
    if found.shared > SHARED_MEMORY[architecture]:
        wrong.append(f"{found.shared} bytes of shared memory")
    if not found.tensor_core and launch.kernel.fn.__name__ not in WITHOUT_PRODUCTS:
        wrong.append("no tensor-core instruction")
    if architecture == 90 and launch.kernel.fn.__name__ in TURNED and not found.wgmma:
        wrong.append("no wgmma instruction")
    if launch.kernel.fn.__name__ == "update" and not found.evicted:
        wrong.append("m and v stay in L2 in the place of weights")
    if found.fused_exponents:
        wrong.append(f"{found.fused_exponents} exponentials of a fused multiply-add")
    if found.early - CONSTANTS:
        wrong.append(f"accesses {', '.join(sorted(found.early - CONSTANTS))} before it waits")
    if found.moved:
        wrong.append(f"{found.moved} accesses moved across its wait")
    return [f"sm_{architecture} {launch}: {fault}" for fault in wrong]


@pytest.mark.parametrize(("architecture", "op", "shape"), SHIPPED, ids=str)
def test_shipped_kernels_fit_the_hardware(architecture, op, shape):
    launches = launches_of(architecture, op, shape)
    assert launches
    wrong = []
    for launch in launches:
        wrong += faults(launch, compile_for(launch, architecture), architecture)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("architecture", "shape"), [(90, (32, 512)), (90, (70, 33)), (100, (32, 512))], ids=str
)
def test_overlapping_launches_wait_before_they_read_what_others_write(architecture, shape):
    launches = step(*shape, overlap=True)
    assert len(launches) == 8  # the first step's layer and update differ from the others'
    for launch in launches:
        found = compile_for(launch, architecture)
        assert found.waits == found.signals == 1 and not faults(launch, found, architecture)


@triton.jit
def hasty(x, rows, y):
    row = tl.load(rows)
    value = tl.load(x + row)
    wait_for_previous(True)
    tl.store(y, value + tl.load(x))


@triton.jit
def repeated(x, y, n, B: tl.constexpr):
    i = tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None, :]
    sums = tl.zeros((B, B), tl.float32)
    for start in range(n):
        wait_for_previous(True)
        a = tl.load(x + start * B * B + i)
        sums = tl.dot(a, a, sums)
    tl.store(y + i, sums)


def test_a_read_before_the_wait_is_seen():
    """By hand, and by the compiler, which prefetches a loop's loads past a wait in the loop."""
    x, rows = torch.zeros(64 * 64 * 4, dtype=torch.float16), torch.zeros(1, dtype=torch.int32)
    y = torch.zeros(64 * 64)
    (launch,) = launched(lambda: hasty[(1,)](x, rows, y, num_warps=4))
    found = compile_for(launch, 90)
    assert found.early == {"x", "rows"} and found.moved == 0
    *_, read, moved = faults(launch, replace(found, moved=2), 90)
    assert read.endswith("accesses x before it waits")
    assert moved.endswith("2 accesses moved across its wait")
    (launch,) = launched(lambda: repeated[(1,)](x, y, 4, 64, num_warps=4, num_stages=3))
    assert compile_for(launch, 90).early - CONSTANTS


def test_a_kernel_that_does_not_fit_is_seen():
    """The checks themselves: a tile of 64 x 64 float32 sums and Adam in two warps spills."""
    before = adapter_step_triton.UPDATE
    adapter_step_triton.UPDATE = {**before, "BM": 64, "num_warps": 2}
    try:
        (launch,) = [x for x in step(32, 512) if dict(x.constants).get("FIRST") is False]
    finally:
        adapter_step_triton.UPDATE = before
    assert any("spills" in fault for fault in faults(launch, compile_for(launch, 90), 90))
    assert faults(launch, Compiled(32, 0, 200 * 1024, 0, 0, 0, 1, 0), 80) == [
        f"sm_80 {launch}: {200 * 1024} bytes of shared memory",
        f"sm_80 {launch}: no tensor-core instruction",
    ]


@pytest.mark.parametrize("shape", [(32, 512), (2, 64), (21, 500)], ids=str)
def test_layers_that_lost_wgmma_are_seen(shape):
    """What was launched before: tiles whose 16 or 32 rows are the batch's."""
    launch = next(x for x in step(*shape) if x.kernel.fn.__name__ == "layer")
    few = Compiled(200, 0, 48 * 1024, 0, 96, 0, 0, 0)
    assert faults(launch, few, 90) == [f"sm_90 {launch}: no wgmma instruction"]
    assert not faults(launch, few, 80)


def test_logits_fused_with_their_log_sums_are_seen(monkeypatch):
    monkeypatch.setattr(contrastive_triton, "UNFUSED", {})
    launches = launches_of(90, "contrastive", ("fast", 64))
    (launch,) = [x for x in launches if x.kernel.fn.__name__ == "gradient"]
    (fault,) = faults(launch, compile_for(launch, 90), 90)
    assert fault.endswith("exponentials of a fused multiply-add")


def programs(found: Compiled, warps: int) -> int:
    """How many programs fit on a multiprocessor of compute capability 9.0."""
    registers = 32 * warps * (-found.registers // 8 * -8)
    return min(65536 // registers, 228 * 1024 // (found.shared + 1024), 64 // warps)


def main() -> None:
    """The tables of docs/kernels-gpu.md, as Markdown."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for architecture, op, shape in SHIPPED:
        for nth, launch in enumerate(launches_of(architecture, op, shape)):
            found = compile_for(launch, architecture)
            assert not faults(launch, found, architecture)
            constants = {**dict(launch.constants), **dict(launch.options)}
            tile = " x ".join(str(constants[n]) for n in ("BM", "BN", "BC", "BK") if n in constants)
            name = f"{nth + 1}. {launch.kernel.fn.__name__}"
            rows.setdefault((f"{op} {' x '.join(map(str, shape))}", name), {})[architecture] = (
                f"{tile}, {constants['num_warps']} w: {found.registers}, {found.shared >> 10} K"
            )
    print("| launch | kernel | " + " | ".join(f"sm_{a}" for a in SHARED_MEMORY) + " |")
    print("|---|---|" + "---|" * len(SHARED_MEMORY))
    for (case, name), cells in rows.items():
        print(f"| {case} | {name} | " + " | ".join(cells.get(a, "") for a in SHARED_MEMORY) + " |")
    print("\n| kernel | in turn | overlapping | spills, waits | loads before the wait |")
    print("|---|---|---|---|---|")
    for nth, launch in enumerate(step(32, 512, overlap=True)):
        constants = tuple((n, v if n != "OVERLAP" else False) for n, v in launch.constants)
        options = {**dict(launch.options), "launch_pdl": False}
        plain = replace(launch, constants=constants, options=tuple(options.items()))
        found = [compile_for(x, 90) for x in (plain, launch)]
        used = [f"{x.registers}, {programs(x, options['num_warps'])}" for x in found]
        name = f"{nth + 1}. {launch.kernel.fn.__name__}"
        early = ", ".join(sorted(found[1].early)) or "none"
        print("|", " | ".join((name, *used, f"{found[1].spills}, {found[1].waits}", early)), "|")


if __name__ == "__main__":
    main()
