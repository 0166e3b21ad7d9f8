"""Launches of Triton kernels, written down instead of run, then compiled for an absent GPU.

What is compiled is what the launchers ask for: types, alignment, constants, warps and stages.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
WAIT = "griddepcontrol.wait", "ACQBULK"
"""Waits for the previous launch: in PTX, in machine code."""
ACCESS = r"\b(?:ld\.global|st\.global|atom|red|cp\.async|LDG|STG|LDGSTS|ATOMG?|REDG?|UBLKCP)\b"
INSTRUCTION = r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z][\w.]*) (R\d+)(.*?);"
TENSOR_CORE = r"\b(HMMA|HGMMA|UTC\w*MMA)\b"


@dataclass(frozen=True)
class Launch:
    """One kernel as a launcher specialises it."""

    kernel: JITFunction
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        known = ", ".join(f"{k} {v}" for k, v in self.constants if isinstance(v, int))
        warps = ", ".join(f"{k.removeprefix('num_')} {v}" for k, v in self.options)
        kinds = "/".join(sorted({t[1:] for _, t in self.types if t.startswith(("*f", "*b"))}))
        return f"{self.kernel.fn.__name__} [{kinds}; {known}; {warps}]"


@dataclass(frozen=True)
class Compiled:
    """What the assembler made of it."""

    registers: int
    stack: int
    shared: int
    spills: int  # LDL and STL instructions
    tensor_core: int
    wgmma: int  # of those, the ones of compute capability 9 for 64 rows and more
    evicted: int  # loads and stores that mark their lines as the first to leave L2
    fused_exponents: int  # exponentials of what a fused multiply-add made
    waits: int = 0  # WAIT instructions
    signals: int = 0  # instructions that let the next launch start
    early: frozenset[str] = frozenset()  # arguments whose memory is accessed before the first
    moved: int = 0  # accesses that the assembler moved across it


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """The distinct launches made inside; none of them runs."""
    found: list[Launch] = []

    def note(kernel: JITFunction, *args: object, grid: object, warmup: bool, **named: object):
        launch = _describe(kernel, args, named)
        if launch not in found:
            found.append(launch)

    with mock.patch.object(JITFunction, "run", note):
        yield found


def launched(call: Callable[[], object]) -> list[Launch]:
    """The distinct launches of one call."""
    with launches() as found:
        call()
    return found


def _describe(kernel: JITFunction, args: tuple, named: dict) -> Launch:
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: named.pop(name) for name in kernel.arg_names if name in named}
    types, constants, aligned = [], [], []
    for parameter in kernel.params:
        name, value = parameter.name, values.get(parameter.name, parameter.default)
        if isinstance(value, torch.Tensor):
            types.append((name, TYPES[value.dtype]))
            even = not parameter.do_not_specialize_on_alignment and value.data_ptr() % 16 == 0
        elif parameter.is_constexpr or value is None or value == 1:
            constants.append((name, value))
            continue
        else:
            types.append((name, "fp32" if isinstance(value, float) else "i32"))
            even = isinstance(value, int) and value % 16 == 0
        if even:
            aligned.append(name)
    return Launch(
        kernel, tuple(types), tuple(constants), tuple(aligned), tuple(sorted(named.items()))
    )


def compile_for(launch: Launch, architecture: int) -> Compiled:
    """`launch` compiled for sm_<architecture>."""
    names = launch.kernel.arg_names
    constants = dict(launch.constants)
    signature = {name: dict(launch.types).get(name, "constexpr") for name in names}
    compiled = triton.compile(
        ASTSource(
            fn=launch.kernel,
            signature=signature,
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned},
        ),
        target=GPUTarget("cuda", architecture, 32),
        options=dict(launch.options),
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("cuobjdump", "-sass", file.name)
    return Compiled(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        shared=compiled.metadata.shared,
        spills=len(re.findall(r"\b(LDL|STL)\b", code)),
        tensor_core=len(re.findall(TENSOR_CORE, code)),
        wgmma=len(re.findall(r"\bHGMMA\b", code)),
        evicted=len(re.findall(r"\b(?:ld|st)\.global\S*evict_first", compiled.asm["ptx"])),
        fused_exponents=_fused_exponents(code),
        waits=code.count(WAIT[1]),
        signals=code.count("PREEXIT"),
        early=_early(compiled.asm["ptx"], [name for name, _ in launch.types]),
        moved=_accesses_before(WAIT[1], code) - _accesses_before(WAIT[0], compiled.asm["ptx"]),
    )


def _accesses_before(wait: str, code: str) -> int:
    return len(re.findall(ACCESS, code.partition(wait)[0])) if wait in code else 0


def _early(ptx: str, arguments: list[str]) -> frozenset[str]:
    """The arguments that addresses before the wait are computed from; "?" for one from none."""
    code, wait, _ = ptx.partition(WAIT[0])
    made_of: dict[str, set[str]] = {}  # by register
    early: set[str] = set()
    for name, operands in re.findall(r"^\s*(?:@!?%\w+ )?([a-z][\w.:]+)\s+(.*?);", code, re.M):
        target, _, sources = re.fullmatch(r"(\{.*?\}|[^,]*)(,?)(.*)", operands).groups()
        if "[" in target:  # a store
            target, sources = "", target
        found = {arguments[int(n)] for n in re.findall(r"_param_(\d+)\]", sources)}
        for register in re.findall(r"%\w+", sources):
            found |= made_of.get(register, set())
        for register in re.findall(r"%\w+", target):
            made_of[register] = found
        if re.match(ACCESS, name):
            early |= found or {"?"}
    return frozenset(early) if wait else frozenset()


def _fused_exponents(code: str) -> int:
    made_by: dict[str, str] = {}
    found = 0
    for name, target, operands in re.findall(INSTRUCTION, code):
        if name == "MUFU.EX2":
            found += made_by.get(re.search(r"R\d+", operands)[0], "").startswith("FFMA")
        made_by[target] = name
    return found


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / tool, *arguments], capture_output=True, text=True, check=True
    ).stdout
