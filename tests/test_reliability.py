"""A small share of what docs/reliability.md counts: damaged files, kills, races, memory."""

import ast
import random
import shutil
from pathlib import Path

import pytest

from tests.conftest import NEEDS_PROC, on_posix
from tests.datasets.loopback import serving
from tests.processes import python
from tests.reliability.fuzz import Judge
from tests.reliability.killed_commands import COMMANDS, prepare
from tests.reliability.kills import Killing, Nursery
from tests.reliability.memory import sample
from tests.reliability.mutate import DAMAGE, mutate
from tests.reliability.readers import KINDS
from tests.reliability.taken import taken

FILES_OF_A_KIND = 12
SOME = ("cache", "npz", "sweep.yaml", "adapter.safetensors, forged", "trials.jsonl", "done")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SOME)
def test_damaged_files_are_refused_or_read_as_they_were(name, tmp_path):
    judge, draw = Judge(name, tmp_path / "place", tmp_path / "out"), random.Random(0)
    while sum(judge.counts.values()) < FILES_OF_A_KIND:
        judge.look(mutate(draw.choice(judge.sound), draw, judge.sound))
    assert not judge.found


def test_the_judge_finds_what_is_wrong(tmp_path, monkeypatch):
    """Readers that raise what they should not, or believe anything, are findings."""
    for reader, words in (
        (lambda data: data[999], "IndexError"),
        (lambda data: data, "took other content"),
    ):
        kind = KINDS["bench.jsonl"]._replace(
            prepare=lambda place: [b"sound" * 200],
            read=lambda place, data, reader=reader: taken({"it": lambda: reader(data)}),
            strict=True,
        )
        monkeypatch.setitem(KINDS, "made up", kind)
        judge = Judge("made up", tmp_path, tmp_path / "out")
        judge.look(b"sound" * 200)
        assert not judge.counts
        judge.look(b"damaged")
        assert judge.counts["FINDINGS"] == 1 and words in next(iter(judge.found.values()))


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
def test_every_damage_is_repeatable_and_takes_any_file(damage):
    for data in (b"1", b"12", b'{"a": 1.5}' * 100):
        found = []
        for _ in range(2):
            draw, whole = random.Random(3), bytearray(data)
            damage(whole, draw, [b"other"])
            found.append(bytes(whole))
        assert found[0] == found[1]


@on_posix("forks")
def test_eight_processes_at_one_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.reliability.races import races\n"
        "print(dict(races(2, Path(sys.argv[1]), 'torch')))"  # numba takes a second to start
    )
    found = _apart(code, tmp_path)
    assert found["races"] == 6 and found["WRONG"] == 0 and found["done"] >= 6
    assert sum(found.get(n, 0) for n in ("done", "told: busy", "told: there already")) == 48


@on_posix("forks, and kills by process group")
def test_some_kills_change_nothing(tmp_path):
    with serving() as server:
        prepare(tmp_path, server)
        nursery = Nursery(tmp_path / "log")
        for name in ("sweep --halving", "cache import"):
            killing, seed = Killing(COMMANDS[name], nursery, tmp_path, server.url), 0
            while sum(killing.hits.values()) < 2:
                killing.trial(seed)
                seed += 1
                assert seed < 40, f"{name}: no signal met it"
            assert not killing.failures
        nursery.close()


@NEEDS_PROC
def test_memory_stays_flat_over_five_hundred_rounds(tmp_path):
    held, logged = sample(500, 50, tmp_path, head="low-rank")
    assert held[-1] - held[2] < 8e6, held
    growth = [b - a for a, b in zip(logged, logged[1:], strict=False)]
    assert max(growth) < 2 * min(growth)  # a line a round, and lines alike
    shutil.rmtree(tmp_path / "run")


def _apart(code: str, folder: Path) -> dict:
    return ast.literal_eval(python(code, folder).splitlines()[-1])
