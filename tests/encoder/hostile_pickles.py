"""Pickles written instruction by instruction, as by an attacker; no pickler writes them."""

import pickle
import struct


class Program:
    """Instructions of a pickle, appended one after another."""

    def __init__(self, code: bytes = b"") -> None:
        self.code = code

    def raw(self, code: bytes) -> "Program":
        self.code += code
        return self

    def then(self, other: "Program") -> "Program":
        return self.raw(other.code)

    def text(self, word: str) -> "Program":
        return self.raw(b"X" + struct.pack("<I", len(word.encode())) + word.encode())

    def number(self, value: int) -> "Program":
        return self.raw(pickle.dumps(value, 2)[2:-1])

    def dict(self) -> "Program":
        return self.raw(b"}")

    def set_item(self) -> "Program":
        return self.raw(b"s")

    def name(self, words: str) -> "Program":
        module, name = words.split(" ")
        return self.raw(f"c{module}\n{name}\n".encode())

    def module(self, name: str) -> "Program":
        return self.name(f"__torch__ {name}").raw(b")\x81")

    def build(self) -> "Program":
        return self.raw(b"b")

    def memoize(self, at: int) -> "Program":
        return self.raw(b"q" + bytes([at]))

    def recall(self, at: int) -> "Program":
        return self.raw(b"h" + bytes([at]))

    def numbers(self, values: tuple[int, ...]) -> "Program":
        self.raw(b"(")
        for value in values:
            self.number(value)
        return self.raw(b"t")

    def end(self) -> bytes:
        return b"\x80\x02" + self.code + b"."


def tensor(
    kind: str = "torch FloatStorage",
    key: str = "0",
    count: int = 4,
    offset: int = 0,
    size: tuple[int, ...] = (2, 2),
    stride: tuple[int, ...] = (2, 1),
) -> Program:
    made = Program().name("torch._utils _rebuild_tensor_v2").raw(b"((").text("storage")
    made.name(kind).text(key).text("cpu").number(count).raw(b"tQ").number(offset)
    return made.numbers(size).numbers(stride).raw(b"\x89").dict().raw(b"tR")


def call(words: str, argument: str = "touch ran") -> bytes:
    return Program().name(words).raw(b"(").text(argument).raw(b"tR").end()


def in_dict(value: Program) -> bytes:
    return Program().dict().text("a").then(value).set_item().end()


def deep(code: bytes, times: int) -> bytes:
    return Program(b"N" + code * times).end()


_CALLS = (
    *("os system", "posix system", "builtins eval", "builtins exec", "builtins getattr"),
    *("subprocess Popen", "shutil rmtree", "torch load", "torch from_file", "torch.jit load"),
    *("torch.hub load", "operator attrgetter", "functools partial", "pickle loads"),
    *("torch.storage UntypedStorage", "torch.serialization load", "numpy load"),
    *("torch._utils _rebuild_wrapper_subclass", "torch.nn.modules.linear Linear"),
    *("collections OrderedDict.__init__", "torch FloatStorage.from_file", "torch._utils _x"),
)
HOSTILE: dict[str, tuple[bytes, str]] = {  # name -> the pickle, the expected message
    **{f"call {words}": (call(words), words.replace(" ", ".")) for words in _CALLS},
    "stack global": (
        Program().raw(b"\x8c\x02os\x8c\x06system\x93(").text("true").raw(b"tR").end(),
        "os.system",
    ),
    "reference alone": (in_dict(Program().name("os system")), "os.system"),
    "steers a terminal": (in_dict(Program().name("os \x1b[2Jx")), "os.\\x1b[2Jx"),
    "inst": (b"\x80\x02(X\x02\x00\x00\x00idios\nsystem\n.", "INST"),
    "obj": (b"\x80\x02(N}o.", "OBJ"),
    "ext1": (b"\x80\x02\x82\x01.", "EXT1"),
    "ext2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "ext4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "newobj ex": (Program().name("__torch__ M").raw(b")}\x92").end(), "NEWOBJ_EX"),
    "persistent text": (b"\x80\x02P../../etc/passwd\n.", "PERSID"),
    "buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "dup": (b"\x80\x02N2.", "DUP"),
    "new of a function": (
        Program().name("torch._utils _rebuild_parameter").raw(b")\x81").end(),
        "not a TorchScript module",
    ),
    "call of a class": (Program().name("__torch__ M").raw(b")R").end(), "not a function"),
    "call of a text": (Program().text("os.system").raw(b")R").end(), "not a function"),
    "call of a storage": (Program().name("torch FloatStorage").raw(b")R").end(), "not a function"),
    "state of a list": (Program().raw(b"]").dict().build().end(), "state of a list"),
    "state of a function": (
        Program().name("torch._utils _rebuild_tensor_v2").dict().build().end(),
        "state of a Global",
    ),
    "state by code": (Program().module("M").raw(b"]").build().end(), "__setstate__"),
    "a path for a key": (in_dict(tensor(key="../../../etc/passwd")), "../../../etc/passwd"),
    "an absolute key": (in_dict(tensor(key="/etc/passwd")), "/etc/passwd"),
    "a key of no ascii digits": (in_dict(tensor(key="\u0664")), "digits"),
    "a negative count": (in_dict(tensor(count=-4)), "count"),
    "a huge count": (in_dict(tensor(count=1 << 60)), "bytes"),
    "a negative offset": (in_dict(tensor(offset=-1)), "invalid"),
    "a negative stride": (in_dict(tensor(stride=(2, -1))), "invalid"),
    "a negative size": (in_dict(tensor(size=(-2, -2))), "invalid"),
    "overlapping": (in_dict(tensor(size=(9, 9), stride=(0, 0))), "more numbers"),
    "outside": (in_dict(tensor(size=(2, 2), stride=(4, 1))), "outside"),
    "many dimensions": (in_dict(tensor(size=(1,) * 99, stride=(1,) * 99)), "invalid"),
    "two declarations": (
        Program()
        .dict()
        .text("a")
        .then(tensor())
        .set_item()
        .text("b")
        .then(tensor(count=2))
        .set_item()
        .end(),
        "two different ways",
    ),
    "an endless integer": (
        Program(b"\x8b" + struct.pack("<i", 99) + b"\x01" * 99).end(),
        "integer",
    ),
    "an endless text": (Program().text("x" * 5000).end(), "5,000 characters"),
    "a declared text": (b"\x80\x02X\xff\xff\xff\x7fabc.", "malformed"),
    "declared bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", "malformed"),
    "a declared text of 8 bytes": (
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
        "malformed",
    ),
    "a far memo": (Program().raw(b"Nr\xff\xff\xff\x7f").end(), "NoneType"),
    "a memo that is not there": (Program().recall(7).end(), "malformed"),
    "deep tuples": (deep(b"\x85", 400_000), "tuple"),
    "deep lists": (Program(b"]" * 200_000 + b"a" * 199_999).end(), "list"),
    "many objects": (Program(b"N" * 600_000).end(), "500,000"),
    "a tuple as key": (Program().dict().raw(b")N").set_item().end(), "tuple as a key"),
    "a big number as key": (Program().dict().number(1 << 61).raw(b"N").set_item().end(), "key"),
    "no stop": (b"\x80\x02N", "exhausted"),
    "nothing to stop at": (b"\x80\x02.", "malformed"),
    "an unknown instruction": (b"\x80\x02\xfe.", "malformed"),
}


class Trap:
    """Code that runs on unpickling."""

    def __reduce__(self):
        return (print, ("unpickled",))
