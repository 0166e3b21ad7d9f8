"""Commands whose stdin, stdout or stderr is closed, full, a closed pipe or in ASCII."""

import json
import subprocess
import sys
import tempfile

import pytest

from cache.npz import write_npz
from cache.store import write_table
from tests.cli.in_streams import STATES
from tests.conftest import ROOT, on_linux
from tests.extraction.extraction import draw_tree
from tests.processes import python
from tests.runs.small_runs import config, run, small

pytestmark = on_linux("forks, and writes to /dev/full")
ODD = "Ünïcode 漢字"


def ran(cases: list[tuple[str, list[object]]]) -> list[tuple[int, str, str]]:
    code = (
        "import json, sys; from tests.cli.in_streams import run_all\n"
        "cases = json.loads(sys.stdin.read()); out = open(sys.argv[1], 'w')\n"
        "json.dump(run_all(cases), out)"
    )
    asked = json.dumps([(state, [str(word) for word in words]) for state, words in cases])
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as file:
        python(code, file.name, input=asked)
        return [tuple(one) for one in json.load(file)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("streams") / ODD
    folder.mkdir()
    draw_tree(folder)
    write_table(folder / "small.h5", small())
    write_npz(small(), folder / "small.npz")
    run(small(), folder / "run", config(rounds=1), backend="torch")
    return folder


COMMANDS = {  # words -> exit code of an undisturbed one; {} is the folder, [] a new name
    "cache info {}/small.h5": 0,
    "cache verify {}/small.h5": 0,
    "cache import {}/small.npz --out []": 0,
    "cache export {}/small.h5 --out []": 0,
    "cache merge {}/small.h5 --out []": 4,
    "extract --dataset {}/images --model <> --workers 0 --device cpu --out []": 0,
    "federate {}/small.h5 --rounds 1 --device cpu --backend torch --out []": 0,
    "federate {}/none.h5": 4,
    "federate --nonsense": 2,
    "sweep {}/small.h5 --rounds 1 --grid lr=1e-3 --device cpu --backend torch --out []": 0,
    "predict {}/images --run {}/run --device cpu": 1,
    "report {}/run --out []": 0,
    "reproduce {}/images --model <> --seeds 1 --rounds 1 --workers 0 --device cpu --backend torch"
    " --cache []/c.h5 --out []/sweep": 0,
    "download pacs --root [] --url ftp://nowhere": 6,
    "flower supernode {}/none.h5": 1,
    "federate --help": 0,
}


def words_of(command: str, folder, weights, number: int) -> list[str]:
    new = folder / f"new-{number}"
    fill = {"{}": str(folder), "[]": str(new), "<>": str(weights)}
    words = command.split()
    for mark, value in fill.items():
        words = [word.replace(mark, value) for word in words]
    return words


def some_states(command: str) -> list[str]:
    """All states for a quick command, two in turn for one that computes."""
    slow = [c for c in COMMANDS if not COMMANDS[c] and not c.startswith("cache")]
    if command not in slow:
        return list(STATES)
    first = 2 * slow.index(command)
    return [list(STATES)[(first + more) % len(STATES)] for more in (0, 1)]


def test_every_command_in_hostile_states(folder, weights):
    cases = [(state, command) for command in COMMANDS for state in some_states(command)]
    asked = [(s, words_of(c, folder, weights, n)) for n, (s, c) in enumerate(cases)]
    for (state, command), (code, out, err) in zip(cases, ran(asked), strict=True):
        usual, prints = COMMANDS[command], COMMANDS[command] == 0
        expected = usual
        if prints and state == "stdout full":
            expected = 1
            assert "stdout cannot be written" in err, (state, command, err)
        if prints and state == "stdout a closed pipe":
            expected = 141
            assert "Error" not in err, (state, command, err)
        told = f"{command}, {state}: {code}\n{out}\n{err}"
        assert code == expected, told
        assert "Traceback" not in err + out and "Exception ignored" not in err, told
        if usual and not STATES[state].get(2):
            assert err.strip().splitlines()[-1].startswith("Error: "), told
        if prints and not STATES[state].get(1):
            assert out.strip(), told
        if state == "ASCII":
            assert (out + err).isascii(), told


def test_what_a_command_makes_is_whole_whatever_its_streams_are(folder, weights):
    states = ["all closed", "stdout full", "stderr full", "stderr a closed pipe"]
    outs = [folder / f"whole-{n}" for n in range(len(states))]
    words = ["federate", folder / "small.h5", "--rounds", 2, "--device", "cpu", "--backend",
             "torch", "--out"]  # fmt: skip
    ran([(state, [*words, out]) for state, out in zip(states, outs, strict=True)])
    for out in outs:
        assert {f.name for f in out.iterdir()} >= {"done", "report.html", "summary.json"}
        for name in ("rounds.jsonl", "adapter.safetensors"):
            assert (out / name).read_bytes() == (outs[0] / name).read_bytes()


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("2>&-", 0),
        (">&-", 0),
        ("<&-", 0),
        ("<&- >&- 2>&-", 0),
        (">/dev/full", 1),
        ("| head -1", 141),
    ],
)
def test_as_people_type_it(folder, state, code):
    """The forks above imitate the start of Python; here it starts."""
    line = f"'{sys.executable}' -m pipeline cache info '{folder}/small.h5' {state}"
    shell = ["bash", "-c", f"set -o pipefail; {line}"]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
    # head may have read all before the command ends
    assert done.returncode == code or (code == 141 and done.returncode == 0), done.stderr
    assert len(done.stderr.splitlines()) == (code == 1), done.stderr


def test_a_cache_that_is_written_never_gets_what_is_said(folder):
    """With descriptor 2 closed the next file that is opened would be 2."""
    npz = folder / "small.npz"
    for number, state in enumerate(("2>&-", ">&- 2>&-", "<&- >&- 2>&-")):
        out = folder / f"written-{number}.h5"
        line = f"'{sys.executable}' -m pipeline cache import '{npz}' --out '{out}' {state}"
        assert subprocess.run(["bash", "-c", line], cwd=ROOT).returncode == 0
        whole = out.read_bytes()
        assert whole == (folder / "written-0.h5").read_bytes()
