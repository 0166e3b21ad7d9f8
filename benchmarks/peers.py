"""A training step next to everything that people would actually use instead, on one core.

All cases train the same adapters on the same batches, are checked against float64 and take turns.
The floor is the best this core could do, measured in the same turns (benchmarks/floor.py).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import linear, normalize

from benchmarks import eager, floor
from benchmarks.compare import Fault, distance
from benchmarks.cores import one_core
from benchmarks.kernels import RELEASED, SCALE, problem
from benchmarks.measure import take_turns
from benchmarks.rows import Row
from kernels.adapter import AdamSettings, AdapterState
from kernels.backends import BF16
from kernels.cpu.amx import why_not
from kernels.step import adapter_steps
from pipeline.machine import threads

CPU = torch.device("cpu")
LANES, STEPS, BATCH, WIDTH, CLASSES = 4, 20, 32, 512, 7
OURS = "numba"


def run(quick: bool) -> Iterator[Row | Fault]:
    """All rows of `bench peers`; a peer that is not installed or fails is a Fault."""
    with one_core():
        lanes, given, rows = _problem()
        truth = _trained(AdapterState(*(w.double() for w in lanes[0])),
                         tuple(v.double() if v.is_floating_point() else v for v in given), rows,
                         fused=False)  # fmt: skip
        calls, errors = {}, {}
        own = {} if why_not() else {BF16: (_ours(BF16), LANES)}
        for name, (make, units) in (PEERS | own).items():
            try:
                call = make(lanes, given, rows)
                errors[name] = distance(call(), truth)
                calls[name] = (call, units * STEPS)
            except Exception as error:  # a peer, its compiler or its absence may raise anything
                yield Fault("peers", name, f"{type(error).__name__}: {error}")
        alone = {name: call for name, (call, _) in calls.items()}
        repeats = 3 if quick else 15
        times = take_turns({**floor.cases(), **alone}, repeats=repeats, device=CPU)
    core = floor.core_of(times)
    least = floor.step_floor(core, WIDTH, BATCH)
    plain = errors.get("torch eager, Adam")
    base = times["torch eager, Adam"].quantiles(STEPS)["cpu"] if plain is not None else None
    for name, (_, units) in calls.items():
        found = times[name].quantiles(units)
        yield Row(
            "peers", name, f"B {BATCH}, D {WIDTH}, C {CLASSES}, one core; {floor.said(core)}",
            "lane-step", **found, times_baseline=base and base / found["cpu"],
            floor=None if name == BF16 else least,  # of float32's products
            of_floor=None if name == BF16 else least / found["cpu"], error=errors[name],
            plain_error=plain,
        )  # fmt: skip


Given = tuple[Tensor, Tensor, Tensor]
Call = Callable[[], Sequence[Tensor]]


def _problem() -> tuple[list[AdapterState], Given, Tensor]:
    """Adapters; features, labels and unit texts; rows (T, L, B) int32."""
    stacked, features, labels, text = problem(LANES, WIDTH, CLASSES, 2000, CPU)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(2000, (STEPS, LANES, BATCH), generator=draw, dtype=torch.int32)
    lanes = [AdapterState(*(w[lane] for w in stacked)) for lane in range(LANES)]
    return lanes, (features, labels, text), rows


def _trained(one: AdapterState, given: Given, rows: Tensor, **how: object) -> AdapterState:
    batches = list(rows[:, 0].long())
    return eager.train(one, *given, batches, SCALE, **how)  # type: ignore[arg-type]


def _eager(fused: bool) -> Callable[..., Call]:
    return lambda lanes, given, rows: lambda: _trained(lanes[0], given, rows, fused=fused)


def _compiled(lanes: list[AdapterState], given: Given, rows: Tensor) -> Call:
    made = torch.compile(eager.batch_loss)
    return lambda: _trained(lanes[0], given, rows, fused=True, loss=made)


class _Adapter(torch.nn.Module):
    def __init__(self, state: AdapterState) -> None:
        super().__init__()
        for name, weight in state._asdict().items():
            self.register_parameter(name, torch.nn.Parameter(weight.clone()))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        gate = linear(torch.tanh(linear(x, self.w1, self.b1)), self.w2, self.b2).softmax(dim=1)
        return eager.contrastive(normalize(gate * x, dim=1), text, SCALE)


def _vmap(lanes: list[AdapterState], given: Given, rows: Tensor) -> Call:
    """torch.func: gradients of all lanes at once, fused Adam on the stacked weights."""
    features, labels, text = given
    shell = _Adapter(lanes[0])
    slopes = vmap(grad(lambda p, x, t: functional_call(shell, p, (x, t))))

    def call() -> list[Tensor]:
        stacked, _ = stack_module_state([_Adapter(lane) for lane in lanes])
        stacked = {name: weight.detach().requires_grad_() for name, weight in stacked.items()}
        adam = torch.optim.Adam(
            stacked.values(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True
        )
        for step in rows.long():
            found = slopes({n: w.detach() for n, w in stacked.items()}, features[step],
                           text[labels[step]])  # fmt: skip
            for name, weight in stacked.items():
                weight.grad = found[name]
            adam.step()
        return [weight.detach()[0] for weight in stacked.values()]

    return call


def _jax(several: bool) -> Callable[..., Call]:
    def make(lanes: list[AdapterState], given: Given, rows: Tensor) -> Call:
        from benchmarks import jax_peer

        features, labels, text = jax_peer.arrays(*given)
        weights = lanes if several else lanes[:1]
        stacked = jax_peer.arrays(*(torch.stack(parts) for parts in zip(*weights, strict=True)))
        own = jax_peer.arrays(rows if several else rows[:, 0])[0]
        begin = tuple(stacked if several else (w[0] for w in stacked))
        train = jax_peer.many if several else jax_peer.train

        def call() -> list[Tensor]:
            found = train(begin, 5e-5, features, labels, text, own, SCALE)
            found = [w[0] if several else w for w in found]
            return [torch.from_numpy(jax_peer.np.array(w)) for w in found]

        return call

    return make


def _ours(backend: str) -> Callable[..., Call]:
    return lambda lanes, given, rows: lambda: _steps(backend, lanes, given, rows)


def _steps(backend: str, lanes: list[AdapterState], given: Given, rows: Tensor) -> Sequence[Tensor]:
    settings = AdamSettings(
        *(torch.full((LANES,), RELEASED[n], dtype=torch.float64) for n in AdamSettings._fields)
    )
    with threads(CPU, WIDTH, backend):
        state = AdapterState(*(torch.stack(parts) for parts in zip(*lanes, strict=True)))
        adapter_steps(state, *given, rows, settings, logit_scale=SCALE, backend=backend)
    return [w[0] for w in state]


PEERS: dict[str, tuple[Callable[..., Call], int]] = {
    "torch eager, Adam": (_eager(fused=False), 1),
    "torch eager, Adam(fused=True)": (_eager(fused=True), 1),
    "torch.compile, Adam(fused=True)": (_compiled, 1),
    "torch.func vmap of 4 lanes, Adam(fused=True)": (_vmap, LANES),
    "JAX jit + scan": (_jax(several=False), 1),
    "JAX jit + scan, vmap of 4 lanes": (_jax(several=True), LANES),
    OURS: (_ours(OURS), LANES),
}
"""Each peer, and how many lanes one call trains."""
