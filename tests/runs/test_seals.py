"""Damage in a run's and a sweep's own files ends as one line, whatever reads them."""

import contextlib
import json
import math
import random
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import save as torch_save

from pipeline.digests import KEY, check_done, sealed, unsealed
from pipeline.errors import ConfigError, DamagedDone
from pipeline.reports.data import read_run
from pipeline.reports.maps import answers_of
from pipeline.runs.folder import check_facts, read_adapters, write_adapters
from tests.cli.commands import call
from tests.reports.report_folders import real_run
from tests.runs.small_runs import FILES, config, figures, run, small


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return real_run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", [*FILES, "summary.json"])
def test_a_changed_byte_of_a_finished_run_is_told_by_every_reader(whole, tmp_path, name):
    folder = tmp_path / "run"
    for seed in range(20):
        shutil.copytree(whole, folder)
        raw = bytearray((whole / name).read_bytes())
        at = random.Random(seed).randrange(len(raw))
        raw[at] ^= 1 << seed % 8
        (folder / name).write_bytes(raw)
        with pytest.raises(ConfigError, match=rf"{name} has changed since the run ended"):
            check_done(folder)
        done = call("report", folder, code=1)
        assert len(done.stderr.splitlines()) == 1, done.output
        if name == "adapter.safetensors":
            with pytest.raises(ConfigError, match="adapter.safetensors"):
                read_adapters(folder / name)
        shutil.rmtree(folder)


def test_an_unfinished_run_with_a_changed_byte_is_refused_or_ends_with_the_same_bytes(tmp_path):
    table, settings = small(), config(rounds=6)
    calm, base = tmp_path / "calm", tmp_path / "base"
    run(table, calm, settings)
    shutil.copytree(calm, base)
    for name in ("done", "summary.json"):
        (base / name).unlink()
    draw, refused = random.Random(0), 0
    for seed in range(40):
        folder = tmp_path / str(seed)
        shutil.copytree(base, folder)
        file = folder / FILES[seed % 3]
        raw = bytearray(file.read_bytes())
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        file.write_bytes(raw)
        try:
            run(table, folder, settings)
        except ConfigError as error:
            assert "\n" not in str(error) and str(folder) in str(error)
            refused += 1
            continue
        for name in FILES[1:]:
            assert (folder / name).read_bytes() == (calm / name).read_bytes()
    assert refused > 30


def test_an_adapter_of_another_run_is_not_gone_on_with(tmp_path):
    for seed in (0, 1):
        run(small(), tmp_path / str(seed), config(seed=seed))
        (tmp_path / str(seed) / "done").unlink()
    for name in ("adapter.safetensors", "rounds.jsonl"):
        shutil.copy(tmp_path / "1" / name, tmp_path / "0" / name)
    with pytest.raises(ConfigError, match="belongs to another run"):
        run(small(), tmp_path / "0", config())


def test_a_file_without_its_digest_is_refused(tmp_path):
    write_adapters(tmp_path / "a", {}, {"rounds_done": 1, "chosen": []})
    assert read_adapters(tmp_path / "a") == ({}, {"rounds_done": 1, "chosen": []})
    raw = (tmp_path / "a").read_bytes().replace(b"sha256", b"sha257")
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(ConfigError, match="damaged, or of an older version"):
        read_adapters(tmp_path / "a")


def test_objects_are_sealed_and_a_changed_digit_is_seen():
    kept = {"b": 0.1, "a": [1, {"ü": None}], "sha256": "an older seal"}
    found = json.loads(json.dumps(sealed(kept)))
    assert unsealed(found) == {"b": 0.1, "a": [1, {"ü": None}]}
    for strange in (found | {"b": 0.2}, found | {"c": 1}, {"b": 0.1}, [], None, {"sha256": None}):
        with pytest.raises(ValueError):
            unsealed(strange)


def test_an_empty_done_is_an_older_versions_or_a_power_cuts(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    lines = (whole / "done").read_bytes()
    for content in (b"", bytes(len(lines)), b"\xff\n", b"0" * 64 + b"  ../x\n", lines[:300],
                    lines[lines.index(b"\n") + 1 :], lines + lines):  # fmt: skip
        (folder / "done").write_bytes(content)
        with pytest.raises(DamagedDone, match="done is damaged"):
            check_done(folder)
        report = call("report", folder, code=1)
        assert "done is damaged" in report.stderr
    (folder / "done").write_bytes(b"")
    tensors, facts = read_adapters(folder / "adapter.safetensors")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    (folder / "adapter.safetensors").write_bytes(save(arrays, {KEY: json.dumps(facts)}))
    check_done(folder)  # adapters had no digest before done had any
    assert read_run(folder).finished


@pytest.mark.parametrize("damage", ["empty", "zeros", "torn", "without summary"])
def test_a_run_with_a_torn_done_is_checked_and_finished_again(tmp_path, damage, heard):
    calm, folder = tmp_path / "calm", tmp_path / "run"
    run(small(), calm)
    run(small(), folder)
    lines = (folder / "done").read_bytes()
    torn = {"empty": b"", "zeros": bytes(len(lines)), "torn": lines[:200]}.get(damage, b"")
    (folder / "done").write_bytes(torn)
    if damage == "without summary":
        (folder / "summary.json").write_bytes(b"")
    heard.clear()
    document = run(small(), folder)
    assert "done is damaged" in heard[0] and figures(document)
    (folder / "summary.json").unlink()
    assert figures(run(small(), folder)) == figures(document)
    assert any("summary.json is missing" in said for said in heard)
    for name in FILES:
        assert (folder / name).read_bytes() == (calm / name).read_bytes()
    check_done(folder)
    assert read_run(folder).finished
    # Where another file is damaged, too, nothing vouches for it: the run is refused.
    (folder / "done").write_bytes(torn)
    raw = bytearray((folder / "rounds.jsonl").read_bytes())
    raw[100] ^= 1
    (folder / "rounds.jsonl").write_bytes(raw)
    with pytest.raises(ConfigError, match="rounds.jsonl: does not match .* --force to move"):
        run(small(), folder)


def test_a_checkpoint_ahead_of_its_log_is_refused_and_force_keeps_it(tmp_path, heard):
    """Before, training began again at round 0 without a word."""
    run(small(), tmp_path / "calm")
    run(small(), tmp_path / "run")
    folder = tmp_path / "run"
    for name in ("done", "summary.json"):
        (folder / name).unlink()
    log = (folder / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (b"", b"".join(log[:2])):
        (folder / "rounds.jsonl").write_bytes(kept)
        adapter, number = (folder / "adapter.safetensors").read_bytes(), kept.count(b"\n")
        with pytest.raises(ConfigError, match=rf"has {number} of the 4 rounds .* --force to move"):
            run(small(), folder)
        assert (folder / "adapter.safetensors").read_bytes() == adapter
    heard.clear()
    run(small(), folder, force=True)
    assert "moved to" in heard[0] and str(folder / "old-1") in heard[0]
    assert (folder / "old-1" / "adapter.safetensors").read_bytes() == adapter
    assert (folder / "old-1" / "rounds.jsonl").read_bytes() == kept
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    run(small(), folder, force=True)  # of an undamaged run nothing is kept, as ever
    assert not (folder / "old-2").exists()


ODD_FACTS = {
    "rounds_done": (1.5, None, [], -1, 10**30, True, "4", 5, 10**7, math.nan, math.inf),
    "chosen": (None, {}, "", [], [None, None, None], [[1]] * 3, [{}] * 3, [{"round": 0}] * 3, 3),
    "adapters": (3, "a", {}),
    "belongs_to": (None, [], "x"),
    "rounds_sha256": (None, 3, []),
}
ODD_CHOSEN = {
    "round": (1.5, None, [], -1, 10**30, True, "0", 4, math.nan),
    "val_accuracy": (True, "1", [], math.nan, math.inf, -0.1, 1.5, 10**400),
    "test_accuracy": (None, [], 1, {"a": "1"}, {"a": math.nan}, {"a": [1]}, {"a": True}, {"a": 2}),
    "more": (1,),
}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    run(small(), folder)
    for name in ("done", "summary.json"):
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("name", [*ODD_FACTS, *ODD_CHOSEN])
def test_facts_that_no_training_writes_are_one_line(unfinished, tmp_path, name):
    """Under right digests, as a forger or another program makes them."""
    folder = tmp_path / "run"
    shutil.copytree(unfinished, folder)
    file = folder / "adapter.safetensors"
    tensors, facts = read_adapters(file)
    for value in ODD_FACTS.get(name, ODD_CHOSEN.get(name)):
        forged = json.loads(json.dumps(facts))
        (forged if name in ODD_FACTS else forged["chosen"][1])[name] = value
        write_adapters(file, tensors, forged)
        with pytest.raises(ConfigError) as error:
            run(small(), folder)
        assert "\n" not in str(error.value) and "restore" in str(error.value)
        call("report", folder)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["round", "val_accuracy", "test_accuracy"]),
                                      inner), max_leaves=6))  # fmt: skip
def test_no_facts_are_a_traceback(value):
    for facts in (value, {"rounds_done": value, "chosen": []},
                  {"rounds_done": 3, "chosen": [value]},
                  {"rounds_done": 3, "chosen": [], "adapters": value}):  # fmt: skip
        with contextlib.suppress(ValueError):
            check_facts(facts)


def test_tensors_of_other_types_are_one_line(unfinished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unfinished, folder)
    file = folder / "adapter.safetensors"
    tensors, facts = read_adapters(file)
    for dtype in (torch.float64, torch.float16, torch.int64, torch.bool, torch.bfloat16):
        odd = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        file.unlink()  # tensors of the first one lie in it
        file.write_bytes(torch_save(odd, {KEY: json.dumps(facts | {"sha256": "0" * 16})}))
        with pytest.raises(ConfigError, match="adapter.safetensors: "):
            run(small(), folder)


def test_an_unfinished_run_with_a_damaged_adapter_still_has_its_page(whole, tmp_path):
    """Found by the fuzzer: a NaN in an adapter reached the map of features."""
    cache, file = whole.parent / "cache.h5", tmp_path / "run" / "adapter.safetensors"
    shutil.copytree(whole, tmp_path / "run")
    for name in ("done", "summary.json"):
        (tmp_path / "run" / name).unlink()
    tensors, facts = read_adapters(file)
    nan = {name: tensor * float("nan") for name, tensor in tensors.items()}
    write_adapters(file, nan, facts)
    assert "not finite" in answers_of(read_run(tmp_path / "run"), cache)
    file.write_bytes(file.read_bytes().replace(b"sha256", b"sha257"))
    data = read_run(tmp_path / "run")
    assert "damaged" in answers_of(data, cache) and "damaged" in data.notes[-1]
