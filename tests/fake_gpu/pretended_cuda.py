"""A CUDA device where there is none: `pytest -p tests.fake_gpu.pretended_cuda` runs the GPU's tests
here.

A tensor on it (`Pretended`) says it is on cuda:0 and holds a CPU tensor that the work is done on.
What a real device refuses is refused: tensors of two devices in one operation, .numpy(), Triton
kernels on CPU tensors; and in a capture everything that waits for the device or crosses over to it.
A captured graph's operations run again at a replay, into the tensors that the capture made; what
the capture itself computed is overwritten by NaN, as nothing runs in a real one.
Not pretended: streams (all work is in order), speed, memory, and the real kernels' arithmetic.
"""

import contextlib
import ctypes
import importlib.util
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

SOURCE = Path(__file__).with_suffix(".cpp")


def _load() -> ctypes.CDLL:
    """Builds pretended_cuda.cpp and loads it, before torch asks who can do CUDA."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "pretended_cuda.so")
        subprocess.run(
            ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", SOURCE, "-o", built,
             f"-L{torch}/lib", "-lc10", "-ltorch_cpu"], check=True,
        )  # fmt: skip
        for library in (torch / "lib/libc10.so", torch / "lib/libtorch_cpu.so", built):
            loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return loaded


native = _load()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
MOVES = (aten._to_copy.default, aten.copy_.default)
WAITS = (
    aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default,
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
)  # fmt: skip
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)


class Refused(RuntimeError):
    """What a real device would not do."""


class Pretended(Tensor):
    """A tensor on cuda:0, whose numbers are those of `held`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), keywords=None):
        return _run(operation, args, keywords or {})

    def __repr__(self) -> str:
        return f"Pretended({self.held})"

    def __getitem__(self, at):
        return super().__getitem__(_without_lists(at))

    def __setitem__(self, at, value):
        super().__setitem__(_without_lists(at), value)

    def tolist(self):
        return self.cpu().tolist()


class Everywhere(TorchDispatchMode):
    """Operations that make tensors on the device, or bring them there, have none of its yet."""

    def __torch_dispatch__(self, operation, types, args=(), keywords=None):
        return _run(operation, args, keywords or {})


class Graph:
    """torch.cuda.CUDAGraph: what was captured, in order."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.made: list[Tensor] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


capturing: Graph | None = None


@contextlib.contextmanager
def _capture(graph: Graph, *_: object, **__: object) -> Iterator[None]:
    global capturing
    capturing = graph
    try:
        yield
    finally:
        capturing = None
    for tensor in graph.made:
        tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
                     if tensor.dtype != torch.bool else True)  # fmt: skip


def _run(operation, args: tuple, keywords: dict) -> object:
    """The operation on what tensors hold, where a real device would do it."""
    if operation in (aten.pin_memory.default, aten._pin_memory.default):
        return args[0].clone()
    if operation is aten.is_pinned.default:
        return False
    tensors = [t for t in tree_leaves((args, keywords)) if isinstance(t, Tensor)]
    here = [t for t in tensors if isinstance(t, Pretended)]
    elsewhere = [t for t in tensors if not isinstance(t, Pretended)]
    onto = bool(here)
    if operation is aten.copy_.default:
        onto = isinstance(args[0], Pretended)
    elif keywords.get("device") is not None:
        onto = torch.device(keywords["device"]).type == "cuda"
        keywords = keywords | {"device": torch.device("cpu")}
    if keywords.get("pin_memory"):
        keywords = keywords | {"pin_memory": False}
    _refuse(operation, here, elsewhere, onto)
    args, keywords = tree_map(_held, (args, keywords))
    if operation is aten.mm.dtype:  # a product of bfloat16 with a float32 result: CUDA's alone
        operation = _product_in
    elif operation in (aten.addmm.dtype, aten.addmm.dtype_out):
        operation = _sum_in
    result = operation(*args, **keywords)
    if capturing is not None and onto:
        _note(operation, args, keywords, result)
    known = {id(_held(t)): t for t in tensors}

    def put(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return Pretended(value) if onto else value

    return tree_map(put, result)


def _refuse(operation, here: list[Tensor], elsewhere: list[Tensor], onto: bool) -> None:
    """Raises Refused for what a real device raises for; a tensor without axes may be the CPU's."""
    far = [tuple(t.shape) for t in elsewhere if t.dim()]
    if here and far and operation not in (*MOVES, *INDEXING):
        raise Refused(f"{operation} of tensors on cuda:0 and on the CPU, shapes {far}")
    if here and operation in PRODUCTS and not here[0].is_floating_point():
        raise Refused(f"{operation} of {here[0].dtype}: CUDA has no product of integers")
    if capturing is None:
        return
    crosses = operation in MOVES and bool(here) != onto or (here and elsewhere)
    if crosses or (here and operation in WAITS) or (here and operation in INDEXING and any(
        t.dtype == torch.bool for t in here[1:]
    )):  # fmt: skip
        raise Refused(f"{operation} waits for the device: not allowed in a capture")


def _note(operation, args: tuple, keywords: dict, result: object) -> None:
    """Does an operation of a capture again at each replay, into the tensors it made."""
    given = {
        t.untyped_storage().data_ptr() for t in tree_leaves((args, keywords))
        if isinstance(t, Tensor)
    }  # fmt: skip
    made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    fresh = [t.untyped_storage().data_ptr() not in given for t in made]

    def again() -> None:
        for new, old, own in zip(
            tree_leaves(operation(*args, **keywords)), made, fresh, strict=True
        ):
            if own:
                old.copy_(new)

    capturing.calls.append(again)
    capturing.made += [t for t, own in zip(made, fresh, strict=True) if own]


def _product_in(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return aten.mm.default(a.to(dtype), b.to(dtype))


def _sum_in(
    addend: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor | None = None
) -> Tensor:
    found = aten.addmm.default(addend.to(dtype), a.to(dtype), b.to(dtype))
    return found if out is None else out.copy_(found)


def _held(value: object) -> object:
    return value.held if isinstance(value, Pretended) else value


def _without_lists(at: object) -> object:
    """torch makes tensors of lists with its modes off, where nothing of this file is asked."""
    if isinstance(at, tuple):
        return tuple(map(_without_lists, at))
    return (torch.tensor(at) if at else torch.arange(0)).to(DEVICE) if isinstance(at, list) else at


class _Ordered:
    """A stream or an event, where everything is done in order."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _synchronize(*_: object) -> None:
    if capturing is not None:
        raise Refused("torch.cuda.synchronize in a capture")


def _pretend_triton() -> None:
    """Triton's interpreter works on what tensors hold."""
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def pretend(self: GridExecutor, *args: object, **keywords: object) -> None:
        for value in tree_leaves((args, keywords)):
            if isinstance(value, Tensor) and not isinstance(value, Pretended):
                raise Refused(f"a Triton kernel on a CPU tensor of shape {tuple(value.shape)}")
        args, keywords = tree_map(_held, (args, keywords))
        if capturing is not None:
            capturing.calls.append(lambda: launch(self, *args, **keywords))
        else:
            launch(self, *args, **keywords)

    GridExecutor.__call__ = pretend


def _pretend_torch() -> None:
    native.take_over()
    cuda, make, start = torch.cuda, torch.tensor, threading.Thread.run
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.get_device_properties = lambda *_: SimpleNamespace(
        name="a pretended GPU", total_memory=16 << 30, major=9, minor=0, multi_processor_count=132
    )
    cuda.get_device_name = lambda *_: "a pretended GPU"
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda.mem_get_info = lambda *_: (8 << 30, 16 << 30)
    cuda.memory_allocated = cuda.max_memory_allocated = lambda *_: 0
    cuda.reset_peak_memory_stats = cuda.empty_cache = lambda *_: None
    cuda.get_rng_state, cuda.set_rng_state = (lambda *_: torch.get_rng_state()), (lambda *_: None)
    cuda.synchronize = _synchronize
    cuda.Stream = cuda.Event = _Ordered
    cuda.current_stream = cuda.default_stream = _Ordered
    cuda.CUDAGraph, cuda.graph = Graph, _capture
    cuda.set_stream = lambda *_: None
    cuda.stream = cuda.device = cuda.device_of = contextlib.nullcontext
    # A subclass's tensors can neither be an inference tensor nor become a Parameter's .data.
    torch.inference_mode = lambda *_: torch.no_grad()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    backends = torch.backends.cuda  # attention without a kernel that asks what the GPU can do
    for fused in (backends.enable_flash_sdp, backends.enable_mem_efficient_sdp,
                  backends.enable_cudnn_sdp):  # fmt: skip
        fused(False)

    def tensor(data: object, *, device: object = None, **keywords: object) -> Tensor:
        made = make(data, **keywords)
        return made if device is None else made.to(device)

    def run(thread: threading.Thread) -> None:
        with Everywhere():  # modes belong to a thread
            start(thread)

    torch.tensor, threading.Thread.run = tensor, run
    Everywhere().__enter__()


_pretend_torch()
_pretend_triton()
