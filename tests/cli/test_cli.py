"""The commands as people type them: what they print, how they end, what they import."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.app import cli
from pipeline.cli.command import spelled_for_click
from tests.cli.commands import call, refused
from tests.conftest import ROOT
from tests.processes import python
from tests.runs.small_runs import small, stored

COMMANDS = (
    ["extract"],
    ["federate"],
    ["sweep"],
    ["cache"],
    ["cache", "info"],
    ["cache", "import"],
    ["download"],
    ["predict"],
    ["reproduce"],
    ["report"],
    ["table"],
)


@pytest.fixture
def file(tmp_path):
    stored(tmp_path)
    return tmp_path / "small.h5"


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[str, list[str]]]:
    """What each command's --help prints, and which heavy packages it is the first to import."""
    code = f"""
import contextlib, io, json, sys
from pipeline.cli.app import cli
found, heavy = {{}}, {{"torch", "clip", "numba", "numpy", "h5py", "PIL"}}
assert not heavy & set(sys.modules)
for words in {COMMANDS!r}:
    before, out = set(sys.modules), io.StringIO()
    with contextlib.redirect_stdout(out):
        cli([*words, "--help"], standalone_mode=False)
    found[" ".join(words)] = out.getvalue(), sorted(heavy & (set(sys.modules) - before))
print(json.dumps(found))
"""
    return json.loads(python(code))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_answers_without_the_heavy_packages(helps, command):
    shown, heavy = helps[" ".join(command)]
    assert not heavy
    assert "Usage:" in shown and len(shown.splitlines()) > 4


def test_bare_run_sh_lists_the_commands_there_are():
    shown = subprocess.run([ROOT / "run.sh"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  ([\w-]+) ", shown, re.MULTILINE))
    assert listed == set(cli.commands) | {"bench", "test", "check", "docs-check", "gpu-check"}


def test_released_spellings():
    words = "--test_envs 0 1 --wk_iters 2 --mode FedAtImg x_y.h5 --out a_b".split()
    assert spelled_for_click(words) == (
        "--test-envs 0 --test-envs 1 --wk-iters 2 --mode FedAtImg x_y.h5 --out a_b".split()
    )
    assert spelled_for_click(["--test-envs=3", "--lr=5e-05"]) == ["--test-envs=3", "--lr=5e-05"]
    passed_on = "--test_envs 0 -- --of_another_program --test_envs 0 1".split()
    assert spelled_for_click(passed_on) == ["--test-envs", *passed_on[1:]]


def test_usage_that_a_shell_gets_wrong_is_exit_code_2(file, tmp_path):
    for words in (["--test_envs", "--out", tmp_path / "run"], ["--test_envs"], ["--out", ""]):
        assert "Error: " in call("federate", file, *words, code=2).stderr
    assert "an empty path" in call("cache", "info", "", code=2).stderr
    help_ = call("extract", "--root_dir", tmp_path, "--on_bad_image", "skip", "--help").stdout
    assert "--root-dir" in help_


def test_ctrl_c_where_nothing_is_at_hand_is_130(monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.datasets.fetch.download_dataset", stopped)
    result = call("download", "pacs", code=130)
    assert not result.output


def test_federate_prints_one_json_object_or_a_table(file, tmp_path):
    words = ["federate", file, "--rounds", 2, "--batch", 8, "--device", "cpu"]
    document = json.loads(call(*words, "--out", tmp_path / "1", "--json").stdout)
    assert {"cache", "config", "results", "mean", "seconds"} <= set(document)
    assert [result["held_out"] for result in document["results"]] == ["a", "b", "c"]
    assert document["config"]["rounds"] == 2 and document["config"]["backend"] == "numba"
    text = call(*words, "--out", tmp_path / "2").stdout
    for word in ("held out", "unseen", "participants", "overall", "mean", "zero-shot"):
        assert word in text
    shown = f"{100 * document['results'][0]['unseen']:.2f}"
    assert shown in text.splitlines()[2]
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_released_command_line_runs_with_both_spellings(file, tmp_path):
    released = [
        "--mode",
        "FedAtImg",
        "--iters",
        2,
        "--wk_iters",
        1,
        "--lr",
        "5e-05",
        "--device",
        "cpu",
    ]
    one = call("federate", file, "--test_envs", 0, 1, *released, "--out", tmp_path / "1", "--json")
    two = call("federate", file, "--held-out", "a,b", "--rounds", 2, "--device", "cpu",
               "--out", tmp_path / "2", "--json")  # fmt: skip
    assert json.loads(one.stdout)["results"] == json.loads(two.stdout)["results"]
    assert json.loads(one.stdout)["results"][0]["held_out"] == "a,b"


def test_what_a_person_may_get_wrong_in_federate(file, tmp_path):
    out = ("--out", tmp_path / "run")
    refused("federate", tmp_path / "none.h5", *out, code=4, match="none.h5")
    refused("federate", file, "--held-out", "A", *out, code=4, match="Did you mean a")
    refused("federate", file, "--test_envs", 7, *out, code=1, match="0 a, 1 b, 2 c")
    refused("federate", file, "--batch", 1, *out, code=1, match="batch of one row")
    refused("federate", file, "--dataset", "pacs", *out, code=1, match="only one")
    refused("extract", "--dataset", "nosuch", "--out", tmp_path / "no.h5", code=6,
            match="choose from demo, pacs")  # fmt: skip
    refused("extract", "--dataset", "dmo", "--out", tmp_path / "no.h5", code=6,
            match="Did you mean demo")  # fmt: skip
    refused("federate", file, "--backend", "fortran", *out, code=5, match="choose from")
    refused("federate", file, "--init-adapter", tmp_path / "no", *out, code=1, match="no such file")
    (tmp_path / "page.h5").write_text("<!DOCTYPE html><html>")
    refused("federate", tmp_path / "page.h5", *out, code=4, match="HTML")
    (tmp_path / "empty.h5").touch()
    refused("cache", "info", tmp_path / "empty.h5", code=4, match="empty")
    (tmp_path / "cut.h5").write_bytes(file.read_bytes()[:-100])
    refused("cache", "verify", tmp_path / "cut.h5", code=4, match="cut.h5")
    blocked = tmp_path / "a file"
    blocked.touch()
    refused("federate", file, "--out", blocked, code=1, match="cannot write")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.json"))


def test_a_flipped_bit_never_trains(file, tmp_path):
    raw = bytearray(file.read_bytes())
    at = raw.find(small().features.tobytes()[:64])
    raw[at + 20] ^= 4
    file.write_bytes(raw)
    refused("federate", file, "--out", tmp_path / "run", code=4, match="checksum|damaged|CRC")


def test_import_info_verify_export_round_trip(tmp_path):
    table = small()
    np.savez(tmp_path / "mine.npz", features=table.features, labels=table.labels,
             text_features=table.text_features, domains=table.domains,
             domain_names=np.array(table.domain_names))  # fmt: skip
    cache = tmp_path / "mine.h5"
    call("cache", "import", tmp_path / "mine.npz", "--out", cache)
    facts = json.loads(call("cache", "info", cache, "--json").stdout)
    assert (facts["rows"], facts["width"], facts["complete"]) == (185, 12, True)
    shown = call("cache", "info", cache).stdout
    assert re.search(r"^rows_per_domain +a 60; b 45; c 80$", shown, re.M) and "{" not in shown
    assert re.search(rf"^fingerprint +{facts['fingerprint']}$", shown, re.M)
    call("cache", "verify", cache)
    call("cache", "export", cache, "--out", tmp_path / "back.npz")
    call("cache", "import", tmp_path / "back.npz", "--out", tmp_path / "again.h5")
    again = json.loads(call("cache", "info", tmp_path / "again.h5", "--json").stdout)
    assert again["content_sha256"] == facts["content_sha256"]
    refused("cache", "import", tmp_path / "mine.npz", "--out", cache, code=4, match="--force")


def test_help_is_quick():
    """A bound far above the 0.12 s measured, to catch an import of torch (2 s), not to time."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "pipeline", "federate", "--help"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0


def test_a_signal_while_the_words_are_read_is_130(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "make_context", interrupted)
    assert CliRunner().invoke(cli, ["cache", "info", "x.h5"]).exit_code == 130
