"""Read a pickle of tensors as plain data: nothing that it names is imported, called or opened.

The format is a program for a stack machine, whose GLOBAL and REDUCE import and call what they name.
Here each permitted instruction has its own case and all others are refused; a reference is text
unless it is one of the few that torch.save and torch.jit.save write for tensors.

torch.load(weights_only=True) refuses TorchScript archives, the form of OpenAI's own weights, and
torch.jit.load runs their code. pickle.Unpickler with find_class and persistent_load is not safe:
in C it hashes any dict key (a tuple nested 400,000 deep crashes the process, equal hashes stall
it), allocates its memo by an index from the file, and sets attributes of any object.
"""

import pickletools
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

# A state dict takes about 45 instructions and 150 bytes a tensor; the largest public CLIPs have a
# thousand tensors, a training checkpoint three times that. An object takes up to 200 bytes here.
MOST_BYTES = 8 << 20
MOST_STEPS = 500_000
MOST_TEXT = 4096
INTEGER_BYTES = 16  # the magic number of files before torch 1.6 has 10
NUMBERS = {  # torch's storage class -> the dtype of its numbers
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
TORCHSCRIPT = "__torch__."  # prefix of the names of an archive's own classes


class UnsafePickle(Exception):
    """A pickle with an instruction, a reference or a size that tensors do not need.

    Its message continues a sentence that begins with the file's name.
    """


class DamagedFile(Exception):
    """A file whose parts are malformed, missing, contradictory or larger than the file."""


class Global(NamedTuple):
    """A reference to a class or function, as its dotted name."""

    name: str


class Module(NamedTuple):
    """An object of a TorchScript archive: the name of its class, and its attributes."""

    kind: str
    attributes: dict[str, Any]


class Storage(NamedTuple):
    """Numbers kept outside the pickle: their declared key, dtype and count."""

    key: str
    dtype: str
    count: int


class Stored(NamedTuple):
    """A tensor as declared: a strided part of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(file: BytesIO) -> tuple[Any, dict[str, Storage]]:
    """The value and the storages of the pickle at `file`'s position, which moves to its end.

    The value is made of None, bool, int, float, str, tuple, list, dict, Global, Module, Storage and
    Stored. An OrderedDict is a dict, a Parameter its tensor; attributes of an OrderedDict are
    dropped. Storages are by key, each with one declaration.
    Memory is bounded by MOST_STEPS objects. Raises UnsafePickle naming any other content, and
    DamagedFile.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}
    try:
        for step, (instruction, given, _) in enumerate(pickletools.genops(file)):
            name = instruction.name
            if step >= MOST_STEPS:
                raise UnsafePickle(f"holds more than {MOST_STEPS:,} pickled objects")
            if name == "STOP":
                return stack.pop(), storages
            if name == "MARK":
                marks.append(len(stack))
            elif name in _VALUES:
                stack.append(_VALUES[name](_plain(given)))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[given] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[given])
            elif name in _TAKES:
                count, do = _TAKES[name]
                start = marks.pop() if count is None else len(stack) - count
                if start < 0:
                    raise IndexError("too few values on the stack")
                items = stack[start:]
                del stack[start:]
                do(stack, items)
            elif name == "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise UnsafePickle(
                        f"declares storage {storage.key} in two different ways; not loaded"
                    )
                stack.append(storage)
            elif name not in ("PROTO", "FRAME"):
                raise UnsafePickle(
                    f"holds the pickle instruction {name}, which weights never need; not loaded"
                )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DamagedFile(f"a malformed pickle ({reason})") from error
    raise DamagedFile("a pickle that is cut off")


def _plain(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MOST_TEXT:
        raise UnsafePickle(f"holds a text of {len(value):,} characters, which weights never need")
    if isinstance(value, int) and value.bit_length() > 8 * INTEGER_BYTES:
        raise UnsafePickle("holds an integer of over 16 bytes, which weights never need")
    return value


def _reference(dotted: str) -> Global:
    if not (dotted in _FUNCTIONS or dotted in NUMBERS or dotted.startswith(TORCHSCRIPT)):
        raise UnsafePickle(
            f"holds a reference to {dotted[:80]}, which weights never need; not loaded, as a "
            "pickle can run any code; save tensors, or model.state_dict() instead of a model"
        )
    return Global(dotted)


def _tuple(stack: list[Any], items: list[Any]) -> None:
    stack.append(tuple(items))


def _set_items(stack: list[Any], items: list[Any]) -> None:
    target = stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
        raise DamagedFile("a pickle that puts items into something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Other keys may have slow or equal hashes.
        if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 31)):
            raise UnsafePickle(f"holds a dict with a {type(key).__name__} as a key")
        target[key] = value


def _append(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise DamagedFile("a pickle that appends to something that is not a list")
    stack[-1].extend(items)


def _stack_global(stack: list[Any], items: list[Any]) -> None:
    module, name = items
    if not (isinstance(module, str) and isinstance(name, str)):
        raise UnsafePickle("holds a reference whose name is not text; not loaded")
    stack.append(_reference(f"{module}.{name}"))


def _new_object(stack: list[Any], items: list[Any]) -> None:
    kind, arguments = items
    if not (isinstance(kind, Global) and kind.name.startswith(TORCHSCRIPT) and arguments == ()):
        raise UnsafePickle("creates an object that is not a TorchScript module; not loaded")
    stack.append(Module(kind.name, {}))


def _build(stack: list[Any], items: list[Any]) -> None:
    target, state = items
    if isinstance(target, Module):
        if not isinstance(state, dict):
            raise UnsafePickle(
                f"holds a module {target.kind.removeprefix(TORCHSCRIPT)[:80]} that restores itself "
                "by code of the archive (__setstate__), which is never run; save model.state_dict()"
            )
        target.attributes.update(state)
    elif not (isinstance(target, dict) and isinstance(state, dict)):  # an OrderedDict's _metadata
        raise UnsafePickle(f"sets the state of a {type(target).__name__}; not loaded")
    stack.append(target)


def _reduce(stack: list[Any], items: list[Any]) -> None:
    function, arguments = items
    if not (isinstance(function, Global) and function.name in _FUNCTIONS):
        raise UnsafePickle("calls something that is not a function of tensors; not loaded")
    if not isinstance(arguments, tuple):
        raise TypeError(f"arguments of {function.name} that are not a tuple")
    stack.append(_FUNCTIONS[function.name](*arguments))


def _storage(found: Any) -> Storage:
    if not isinstance(found, tuple) or len(found) not in (5, 6) or found[0] != "storage":
        raise UnsafePickle("refers to data other than the storage of a tensor; not loaded")
    _, kind, key, _, count, *view = found  # the fourth is the device it was saved from
    if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 20):
        shown = repr(key[:60]) if isinstance(key, str) else f"a {type(key).__name__}"
        raise UnsafePickle(f"refers to data by {shown}, expected digits; not loaded")
    if not (isinstance(kind, Global) and kind.name in NUMBERS) or any(view):
        raise UnsafePickle("has a storage of an unsupported kind")
    if type(count) is not int or count < 0:
        raise UnsafePickle("has a storage without a valid count of numbers")
    return Storage(key, NUMBERS[kind.name], count)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Stored:
    numbers = (offset, *size, *stride)
    whole = all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
    if not isinstance(storage, Storage) or not whole or len(size) != len(stride) or len(size) > 16:
        raise UnsafePickle("has a tensor whose sizes, strides or storage are invalid")
    return Stored(storage, offset, tuple(size), tuple(stride))


def _first(value: Any, *_: object) -> Any:
    return value


def _ordered_dict() -> dict[Any, Any]:
    return {}


_FUNCTIONS: dict[str, Callable[..., Any]] = {  # what a call of each returns
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _first,
    "torch.device": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
}
_VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), _first),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"), _first),
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "GLOBAL": lambda given: _reference(given.replace(" ", ".", 1)),
}
_TAKES: dict[str, tuple[int | None, Callable[[list[Any], list[Any]], None]]] = {
    # how many values each takes off the stack, None: all above the last mark; what it does
    "TUPLE": (None, _tuple),
    "TUPLE1": (1, _tuple),
    "TUPLE2": (2, _tuple),
    "TUPLE3": (3, _tuple),
    "SETITEMS": (None, _set_items),
    "SETITEM": (2, _set_items),
    "APPENDS": (None, _append),
    "APPEND": (1, _append),
    "STACK_GLOBAL": (2, _stack_global),
    "NEWOBJ": (2, _new_object),
    "BUILD": (2, _build),
    "REDUCE": (2, _reduce),
}
