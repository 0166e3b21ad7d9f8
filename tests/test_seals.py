"""Damage in a run's and a sweep's own files ends as one line, whatever reads them."""

import json
import random
import shutil

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.config import ConfigError
from pipeline.report_data import read_run
from pipeline.report_maps import answers_of
from pipeline.run_folder import read_adapters, write_adapters
from pipeline.seals import check_done, sealed, unsealed
from tests.report_folders import real_run
from tests.small_runs import FILES, config, run, small


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
        with pytest.raises(ConfigError, match=rf"{name} is not as it was when the run ended"):
            check_done(folder)
        done = CliRunner().invoke(cli, ["report", str(folder)])
        assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1, done.output
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
    with pytest.raises(ConfigError, match="is another run's"):
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


def test_done_of_an_older_version_says_nothing(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "done").write_bytes(b"")
    check_done(folder)
    for content in (b"\xff\n", b"0" * 64 + b"  ../x\n", (whole / "done").read_bytes()[:300]):
        (folder / "done").write_bytes(content)
        with pytest.raises(ConfigError, match="done is damaged"):
            check_done(folder)


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
