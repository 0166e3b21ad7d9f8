"""Archives of torch read as data: equal to torch's own reading, and none of their code is run."""

import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from pipeline.encoder.tensor_files import read_stream, read_zip
from pipeline.encoder.tensor_pickle import DamagedFile, UnsafePickle, read_pickle
from pipeline.encoder.weights import read_state_dict
from pipeline.errors import WeightsError
from tests.encoder import clips
from tests.encoder.hostile_pickles import HOSTILE, Program, tensor

LISTED = {"visual.conv1.weight", "text_projection", "token_embedding.weight", "logit_scale"}
OLD = {"_use_new_zipfile_serialization": False}


class Part(torch.nn.Module):
    """Parameters, buffers and other content of a TorchScript object."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 4))
        self.row = torch.nn.Parameter(self.weight.data[1])  # the same storage, at an offset
        self.turned = torch.nn.Parameter(torch.randn(4, 2).t())
        self.none = torch.nn.Parameter(torch.zeros(0, 5))
        self.scalar = torch.nn.Parameter(torch.tensor(2.5))
        self.register_buffer("count", torch.arange(9)[2:8:2])
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("absent", None)
        self.plain = torch.ones(2)
        self.numbers, self.words = [1, 2], {"a": 1.5}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.scalar


class Whole(torch.nn.Module):
    """Nested modules, one of them in two places, and BatchNorm's statistics."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.part = Part()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
        self.head = torch.nn.Linear(2, 2)
        self.again = self.head if shared else torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.head(self.body(self.part(x))))


def archive_of(module: torch.nn.Module, path: Path, how: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        made = torch.jit.script(module) if how == "script" else traced(module)
        made.save(str(path))
    return path


def traced(module: torch.nn.Module) -> torch.jit.ScriptModule:
    kind = next(module.parameters()).dtype
    return torch.jit.trace(module, torch.zeros(2, 3, dtype=kind), check_trace=False)


def by_torch(path: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(path), map_location="cpu").state_dict()


def rewritten(path: Path, out: Path, change, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with `change` applied to each (name, bytes); None removes a member."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(*changed)
    return out


def same(found: dict[str, torch.Tensor], ref: dict[str, torch.Tensor]) -> bool:
    return found.keys() == ref.keys() and all(
        found[name].dtype == ref[name].dtype and torch.equal(found[name], ref[name]) for name in ref
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_an_archive_gives_the_state_dict_of_torch(how, kind, tmp_path):
    module = Whole(shared=how == "script").eval().to(kind)  # a trace cannot share modules
    path = archive_of(module, tmp_path / "made.pt", how)
    assert same(read_zip(path), by_torch(path))
    assert ("again.weight" in read_zip(path)) and "part.plain" not in read_zip(path)


def test_both_layouts_of_openais_archives_in_fp16(tmp_path):
    whole = clips.save(clips.build(), tmp_path / "whole.pt", "TorchScript")
    ref = by_torch(whole)
    assert any(tensor.dtype == torch.float16 for tensor in ref.values())
    old = ("constants.pkl", "version", "data.pkl")  # as of torch 1.7, under another name

    def bare(name: str, content: bytes):
        rest = name.split("/", 1)[1]
        kept = rest in old or rest.startswith("data/")
        return (f"archive/{rest}", content) if kept else None

    assert same(read_zip(whole), ref)
    assert same(read_zip(rewritten(whole, tmp_path / "bare.pt", bare)), ref)
    packed = rewritten(whole, tmp_path / "packed.pt", lambda *m: m, zipfile.ZIP_DEFLATED)
    assert same(read_zip(packed), ref)


def test_numbers_of_the_other_byte_order_are_turned(tmp_path):
    path = archive_of(Whole(False).eval(), tmp_path / "made.pt", "script")
    ref = by_torch(path)
    with zipfile.ZipFile(path) as archive:
        _, storages = read_pickle(io.BytesIO(archive.read("made/data.pkl")))
    widths = {f"made/data/{k}": getattr(torch, s.dtype).itemsize for k, s in storages.items()}

    def turn(name: str, content: bytes):
        if name == "made/byteorder":
            return name, b"big"
        w = widths.get(name, len(content) or 1)
        turned = b"".join(content[i : i + w][::-1] for i in range(0, len(content), w))
        return name, turned if name in widths else content

    assert same(read_zip(rewritten(path, tmp_path / "big.pt", turn)), ref)


@pytest.mark.parametrize("settings", [{}, OLD], ids=["zip", "stream"])
def test_a_saved_state_dict_gives_what_torch_load_gives(settings, tmp_path):
    state = Whole(shared=True).eval().state_dict()
    for value in (state, {"epoch": 3, "lr": 0.1, "state_dict": state, "seen": [1, (2, None)]}):
        torch.save(value, tmp_path / "state.pt", **settings)
        read = read_stream if settings else read_zip
        assert same(read(tmp_path / "state.pt"), state)


def writes_when_loaded(victim: Path, where: str) -> torch.jit.ScriptModule:
    class Writer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.path = torch.nn.Parameter(torch.ones(2)), str(victim)

        @torch.jit.export
        def __getstate__(self):
            return (self.w, self.path, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
            self.path, self.training = state[1], state[2]
            self.w = torch.from_file(state[1], shared=True, size=10).fill_(1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.w

    inner = Writer()
    module = inner if where == "root" else torch.nn.Sequential(torch.nn.Linear(2, 2), inner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


@pytest.mark.parametrize("where", ["root", "inside"])
def test_code_of_an_archive_is_not_run(where, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "archive.pt"
    made = writes_when_loaded(victim, where)
    made.save(str(path))
    victim.write_bytes(b"A" * 100)
    with pytest.raises(WeightsError, match="__setstate__.*never run"):
        read_state_dict(path)
    assert victim.read_bytes() == b"A" * 100
    by_torch(path)  # torch runs it: the test would see it
    assert victim.read_bytes() != b"A" * 100


def zipped(pickled: bytes, path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/data.pkl", pickled)
        for name, content in {"0": bytes(16), **members}.items():
            archive.writestr(f"made/data/{name}", content)
    return path


def streamed(pickled: bytes, path: Path, listed: list[str]) -> Path:
    head = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {})]
    data = struct.pack("<q", 4) + bytes(16)
    path.write_bytes(b"".join([*head, pickled, pickle.dumps(listed, 2), data]))
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_says_what_it_holds(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a program's `touch ran` would leave its mark
    pickled, said = HOSTILE[name]
    paths = zipped(pickled, tmp_path / "zip.pt"), streamed(pickled, tmp_path / "stream.pt", ["0"])
    for path in paths:
        with pytest.raises(WeightsError) as caught:
            read_state_dict(path)
        assert str(path) in str(caught.value)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600
        assert said in str(caught.value) or path == paths[1]  # which can fail at its list already
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def one_tensor(count: int = 4, **changes) -> bytes:
    program = Program().dict()
    return program.text("a").then(tensor(count=count, **changes)).set_item().end()


def test_the_hostile_programs_differ_from_a_sound_one_only_in_their_fault(tmp_path):
    found = read_zip(zipped(one_tensor(), tmp_path / "zip.pt"))
    assert same(found, {"a": torch.zeros(2, 2)})
    assert same(read_stream(streamed(one_tensor(), tmp_path / "s.pt", ["0"])), found)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 5},
        {"count": 1 << 40},
        {"size": (1 << 30, 1 << 30)},
        {"size": (5,), "stride": (1,)},
        {"size": (4,), "stride": (0,), "offset": 4},
        {"size": (1000, 1000), "stride": (0, 0)},
        {"offset": 1},
        {"size": (2, 2), "stride": (3, 1)},
        {"key": "1"},
        {"kind": "torch DoubleStorage"},
    ],
    ids=str,
)
def test_a_tensor_beyond_its_bytes_is_refused(changes, tmp_path):
    with pytest.raises(WeightsError):
        read_state_dict(zipped(one_tensor(**changes), tmp_path / "zip.pt"))
    with pytest.raises(WeightsError):
        read_state_dict(streamed(one_tensor(**changes), tmp_path / "stream.pt", ["0"]))


def test_many_names_for_the_same_bytes_are_refused(tmp_path):
    program = Program().dict()
    for number in range(9000):  # 36 MB of tensors in a file of 1 MB
        program.text(f"n{number}").then(tensor(count=1024, size=(1024,), stride=(1,)))
        program.set_item()
    path = zipped(program.end(), tmp_path / "zip.pt", **{"0": bytes(4096)})
    with pytest.raises((UnsafePickle), match="declares 9,000 tensors"):
        read_zip(path)


def test_modules_in_modules_without_end_are_refused(tmp_path):
    twice = Program().module("M")  # 40 levels, each with the next one in two places: 2^40 names
    for _ in range(39):
        twice = Program().module("M").dict().text("a").then(twice).memoize(9).set_item()
        twice = twice.text("b").recall(9).set_item().build()
    itself = Program().module("M").memoize(5).dict().text("a").recall(5).set_item().build()
    for program in (twice, itself):
        with pytest.raises(UnsafePickle, match="endlessly"):
            read_zip(zipped(program.end(), tmp_path / "zip.pt"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_lie_are_refused(tmp_path):
    sound = clips.save(clips.build(), tmp_path / "sound.pt", "state dict")

    def refused(path: Path, said: str) -> None:
        with pytest.raises(WeightsError, match=said):
            read_state_dict(path)

    twice = tmp_path / "twice.pt"
    twice.write_bytes(sound.read_bytes())
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr(archive.namelist()[0], b"other")
    refused(twice, "two members of the same name")
    two = tmp_path / "two.pt"
    two.write_bytes(sound.read_bytes())
    with zipfile.ZipFile(two, "a") as archive:
        archive.writestr("other/data.pkl", b"other")
    refused(two, "2 members")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("made/data.pkl", one_tensor())
        archive.writestr("made/data/0", bytes(64 << 20))
    refused(bomb, "declare")
    odd = tmp_path / "odd.pt"
    with zipfile.ZipFile(odd, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("made/data.pkl", one_tensor())
    refused(odd, "compressed by method")
    refused(zipped(one_tensor() + bytes(9 << 20), tmp_path / "long.pt"), "data.pkl of")


def valid_files() -> dict[str, bytes]:
    def saved(**settings) -> bytes:
        buffer = io.BytesIO()
        names = [*sorted(LISTED), "more"]
        torch.save({name: torch.randn(2, 3) for name in names}, buffer, **settings)
        return buffer.getvalue()

    return {"zip": saved(), "stream": saved(**OLD)}


VALID = valid_files()


@pytest.mark.parametrize("form", VALID)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=150, database=None)
def test_a_file_with_changed_bytes_is_read_or_refused(form, data, tmp_path_factory):
    content = bytearray(VALID[form])
    for _ in range(data.draw(st.integers(1, 4))):
        at, new = data.draw(st.integers(0, len(content) - 1)), data.draw(st.binary(max_size=8))
        content[at : at + data.draw(st.just(len(new)) | st.integers(0, 3))] = new
    cut = data.draw(st.just(len(content)) | st.integers(len(content) // 2, len(content)))
    path = tmp_path_factory.getbasetemp() / f"changed-{form}.pt"
    path.write_bytes(content[:cut])
    try:
        found = read_state_dict(path).state
    except WeightsError as error:
        assert str(error).isprintable()
    else:
        assert found.keys() >= LISTED
        assert sum(tensor.nbytes for tensor in found.values()) <= 4 * len(content) + (16 << 20)


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(max_examples=300, database=None)
def test_any_bytes_are_a_value_or_refused(content):
    try:
        read_pickle(io.BytesIO(b"\x80\x02" + content))
    except (UnsafePickle, DamagedFile) as error:
        assert str(error)
