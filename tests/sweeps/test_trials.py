"""trials.jsonl and spec.json: killed, torn, damaged, foreign and contended folders."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.digests import unsealed
from pipeline.errors import ConfigError
from pipeline.sweeps.trials import Record, make_trial, open_sweep, read_trials, record
from tests.conftest import ROOT, on_linux

SPEC = {"sweep": {"parameters": {"lr": {"values": [1e-4, 1e-3]}}, "seeds": [0]}, "backend": "torch"}


def ended(number, **more):
    facts = {"status": "done", "rounds": 3, "results": [{"unseen": 0.5}], "val_accuracy": 0.25}
    return record(make_trial(number, {"lr": number / 8}, 0), **{**facts, "seconds": 1.5, **more})


def write(folder, *records):
    with open_sweep(folder, SPEC) as sweep:
        for each in records:
            sweep.add(each)
    return folder / "trials.jsonl"


def test_what_is_added_is_read_again(tmp_path):
    file = write(tmp_path / "a", ended(0), ended(1, status="failed", error="out of memory 🦆"))
    lines = file.read_text("utf-8").splitlines()
    assert unsealed(json.loads(lines[0])) == dataclasses.asdict(ended(0))
    assert list(json.loads(lines[0])) == [f.name for f in dataclasses.fields(Record)] + ["sha256"]
    with open_sweep(tmp_path / "a", SPEC) as sweep:
        assert list(sweep.records.values())[0] == ended(0)
        assert [r.status for r in sweep.records.values()] == ["done", "failed"]
    assert read_trials(file) == (sweep.records, file.stat().st_size)


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    bad = ended(0, val_accuracy=math.nan, results=[{"a": [math.inf, {"b": -math.inf}]}])
    with open_sweep(tmp_path, SPEC) as sweep:
        sweep.add(bad)
        held = dict(sweep.records)
    text = (tmp_path / "trials.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["results"] == [{"a": [None, {"b": None}]}]
    assert read_trials(tmp_path / "trials.jsonl")[0] == held


def test_every_torn_end_is_cut_back_and_gone_on_from(tmp_path):
    file = write(tmp_path / "whole", ended(0), ended(1))
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    ends = {end + more for end in (0, first, len(whole)) for more in range(-4, 5)}
    sizes = sorted((ends | set(range(0, len(whole), 11))) & set(range(len(whole) + 1)))
    for size in sizes:  # all near the ends of lines, and every 11th between
        folder = tmp_path / str(size)
        write(folder)
        (folder / "trials.jsonl").write_bytes(whole[:size])
        with open_sweep(folder, SPEC) as sweep:
            # A line that lacks only its end is whole: no part of an object is an object.
            assert len(sweep.records) == (size >= first - 1) + (size >= len(whole) - 1)
            sweep.add(ended(2))
        assert list(read_trials(folder / "trials.jsonl")[0])[-1] == ended(2).id
        assert (folder / "trials.jsonl").read_bytes().count(b"\n") == len(sweep.records)


@pytest.mark.parametrize(
    "tail", [b"\0" * 500, b"\xff\xfe", b"{}\n", b"[1]\n", b"nonsense\n", b"\n"]
)
def test_a_last_line_that_is_no_trial_is_cut_back(tmp_path, tail):
    file = write(tmp_path, ended(0))
    good = file.read_bytes()
    file.write_bytes(good + tail)
    with open_sweep(tmp_path, SPEC) as sweep:
        assert list(sweep.records) == [ended(0).id]
    assert file.read_bytes() == good


@pytest.mark.parametrize(
    "line",
    [b"nonsense", b"", b"5", b"{}", b"[" * 100_000, b'{"id": 1}', b"\xff", b"\0\0"]
    + [
        json.dumps({**dataclasses.asdict(ended(5)), **change}).encode()
        for change in (
            {"status": "running"},
            {"settings": [1]},
            {"settings": {"lr": 7.0}},
            {"seed": 1},
            {"id": "000000000000"},
            {"results": None},
        )
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    file = write(tmp_path, ended(0), ended(1))
    lines = file.read_bytes().splitlines()
    before = b"\n".join([lines[0], line, lines[1], b""])
    file.write_bytes(before)
    with pytest.raises(ConfigError, match="line 2 is not a trial"), open_sweep(tmp_path, SPEC):
        pass
    assert file.read_bytes() == before


def test_a_failed_trial_that_is_tried_again_counts_with_its_last_end(tmp_path):
    write(tmp_path, ended(0, status="failed", error="disk full"), ended(1))
    file = write(tmp_path, ended(0))
    assert [r.status for r in read_trials(file)[0].values()] == ["done", "done"]
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backend": "numba"}, "backend = 'torch', but 'numba'"),
        ({"sweep": {**SPEC["sweep"], "seeds": [0, 1]}}, "sweep.seeds = [0], but [0, 1]"),
        (
            {"sweep": {"parameters": {"lr": {"values": [1]}}, "seeds": [0]}},
            "sweep.parameters.lr.values = [0.0001, 0.001], but [1]",
        ),
        (
            {"sweep": {"parameters": {"mu": 1}, "seeds": [0]}},
            "sweep.parameters.lr = {'values': [0.0001, 0.001]}, but nothing",
        ),
        ({"new": 1}, "new = nothing, but 1"),
    ],
)
def test_another_sweep_is_refused_by_the_first_field_that_differs(tmp_path, change, said):
    file = write(tmp_path, ended(0))
    before = file.read_bytes()
    with pytest.raises(ConfigError) as error, open_sweep(tmp_path, {**SPEC, **change}):
        pass
    assert said in str(error.value) and "--force" in str(error.value)
    assert file.read_bytes() == before
    (tmp_path / "study.journal").write_text("old")
    with open_sweep(tmp_path, {**SPEC, **change}, force=True) as sweep:
        assert sweep.records == {}
    assert not (tmp_path / "study.journal").exists()
    assert file.read_bytes() == b""
    # What may be hours of work is set aside, each time in a folder of its own.
    assert (tmp_path / "old-1" / "trials.jsonl").read_bytes() == before
    assert (tmp_path / "old-1" / "study.journal").read_text() == "old"
    with open_sweep(tmp_path, SPEC, force=True) as sweep:
        assert sweep.records == {}
    assert (tmp_path / "old-2" / "spec.json").exists() and not (tmp_path / "old-3").exists()


def test_a_folder_without_its_spec_or_with_a_damaged_one_is_refused(tmp_path):
    write(tmp_path, ended(0))
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "spec.json").write_bytes(content)
        with pytest.raises(ConfigError, match="--force"), open_sweep(tmp_path, SPEC):
            pass
    (tmp_path / "spec.json").unlink()
    with pytest.raises(ConfigError, match="no spec.json"), open_sweep(tmp_path, SPEC):
        pass


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"), open_sweep(tmp_path / "file", SPEC):
        pass
    (tmp_path / "spec" / "spec.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a folder"), open_sweep(tmp_path / "spec", SPEC):
        pass


HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.sweeps.test_trials import SPEC, ended
from pipeline.sweeps.trials import open_sweep
with open_sweep(Path(sys.argv[1]), SPEC) as sweep:
    sweep.add(ended(0))
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_none_after_a_kill(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path), str(ROOT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(ConfigError, match="another process"), open_sweep(tmp_path, SPEC):
                pass
            with (
                pytest.raises(ConfigError, match="another"),
                open_sweep(tmp_path, SPEC, force=True),
            ):
                pass
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    started = time.perf_counter()
    with open_sweep(tmp_path, SPEC) as sweep:
        assert list(sweep.records) == [ended(0).id]
    assert time.perf_counter() - started < 5


@on_linux("writes to /dev/full")
def test_a_full_disk_is_told(tmp_path):
    write(tmp_path)
    (tmp_path / "trials.jsonl").unlink()
    with open_sweep(tmp_path, SPEC) as sweep:
        sweep._lines.close()
        sweep._lines = open("/dev/full", "ab")  # noqa: SIM115
        with pytest.raises(ConfigError, match="free some space"):
            sweep.add(ended(0))
        assert sweep.records == {}
