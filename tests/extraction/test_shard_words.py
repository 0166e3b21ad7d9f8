"""The shard of a process: by option, torchrun or Slurm; and the commands."""

import os
import subprocess
import sys

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.extraction.shards import launched_task, parse_shard, pick_card
from tests.cli.commands import call, refused
from tests.conftest import ROOT, logged
from tests.extraction.extraction import run


def test_the_words_of_a_shard(tree, weights, tmp_path):
    assert parse_shard("2/8") == (2, 8) and parse_shard("1/1") is None
    for words in ("0/8", "9/8", "2", "a/b", "2/8/3", "-1/2", "1/0", "1/9999999", "٢/٨"):
        with pytest.raises(ConfigError, match="--shard"):
            parse_shard(words)
    with pytest.raises(ConfigError, match="12 batches of 2.*up to 12 shards"):
        run(tree, weights, tmp_path / "x.h5", shard="1/13", batch=2)
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("environment", "task", "said"),
    [
        ({}, None, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None, None),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, ("6/8", 1), "torchrun started 8"),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"},
            ("1/4", 0),
            "Slurm started 4",
        ),
        (
            {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"},
            ("4/4", 1),
            "--shard 4/4",
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None, "start the command with srun"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None, None),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, None, None),
    ],
)
def test_launchers_say_which_shard_this_is(environment, task, said):
    with logged() as lines:
        assert launched_task(environment) == task
    assert len(lines) == bool(said) and (not said or said in lines[0])


@pytest.mark.parametrize("rank", ["8", "-1", "x", ""])
def test_a_rank_outside_its_group_is_refused(rank):
    with pytest.raises(ConfigError, match="WORLD_SIZE=8"):
        launched_task({"RANK": rank, "WORLD_SIZE": "8"})


def test_each_process_takes_its_own_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_card(torch.device("cuda"), 3) == torch.device("cuda", 3)
    assert pick_card(torch.device("cuda"), None) == torch.device("cuda")
    assert pick_card(torch.device("cpu"), 3) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # Slurm shows each its own alone
    assert pick_card(torch.device("cuda"), 3) == torch.device("cuda", 0)


def test_torchruns_processes_extract_and_the_command_merges(tree, weights, tmp_path):
    out, whole = tmp_path / "x.h5", tmp_path / "whole.h5"
    words = [
        sys.executable, "-m", "pipeline", "extract", "--dataset", str(tree), "--model",
        str(weights), "--batch", "2", "--workers", "0", "--device", "cpu", "--out",
    ]  # fmt: skip
    both = [
        subprocess.Popen(
            [*words, str(out)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    for index, child in enumerate(both, 1):
        said = child.communicate(timeout=120)[1]
        assert child.returncode == 0 and f"this one is --shard {index}/2" in said
    files = sorted(tmp_path.glob("x.shard-*"))
    assert [file.name for file in files] == ["x.shard-1-of-2.h5", "x.shard-2-of-2.h5"]

    refused("federate", files[0], code=4, match="cache merge")
    refused("cache", "merge", files[1], code=4, match="1/2")
    assert call("cache", "merge", *files).stdout.strip() == str(out)
    run(tree, weights, whole, batch=2)
    assert out.read_bytes() == whole.read_bytes()
    check = ("extract", "--dataset", tree, "--model", weights, "--shard", "1/2", "--check", 3)
    refused(*check, code=1, match="leave out --shard")
