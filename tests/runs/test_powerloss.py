"""Power cuts on a modelled disk: a small share of `python -m tests.reliability.powerloss`."""

import random

import pytest

from pipeline.files import replace_whole
from tests.reliability.powerloss import Disk, cut_power


@pytest.mark.parametrize("name", ["federate", "federate --force", "sweep"])
def test_after_a_power_cut_the_same_command_ends_with_the_same_bytes(name, tmp_path):
    calls, folders, wrong = cut_power(name, 25, 0, tmp_path)
    assert calls > 12 and folders > 10  # else the harness saw nothing; a sweep makes 16 calls
    assert not wrong, "\n".join(wrong)


def test_a_disk_that_takes_no_notice_of_syncs_is_seen(tmp_path):
    """The model can fail: this is what running without any sync looks like."""
    _, _, wrong = cut_power("federate", 25, 0, tmp_path, syncs=False)
    assert any("is not finished after a power cut" in why for why in wrong)


@pytest.mark.parametrize("lasting", [True, False])
def test_what_a_power_cut_may_leave_of_a_file_that_is_replaced(tmp_path, lasting):
    (tmp_path / "file").write_bytes(b"old")
    disk = Disk(tmp_path, random.Random(0))
    with disk.recording():
        replace_whole(tmp_path / "file", b"newer", lasting=lasting)
    found = {left.get("file") for left in disk.left.values()}
    assert {b"old", b"newer"} <= found
    assert found == {b"old", b"newer"} if lasting else {b"", b"ne", bytes(5)} <= found
    ends = {left.get("file") for left in disk.at_the_end()}
    assert ends == {b"newer"} if lasting else b"" in ends


def test_names_that_are_not_synced_come_in_any_subset(tmp_path):
    disk = Disk(tmp_path, random.Random(0))
    with disk.recording():
        (tmp_path / "a").write_bytes(b"1")
        (tmp_path / "b").write_bytes(b"2")
        (tmp_path / "o").mkdir()
        (tmp_path / "o" / "c").write_bytes(b"3")
        (tmp_path / "a").rename(tmp_path / "d")
    found = {frozenset(left) for left in disk.left.values()}
    assert {frozenset(), frozenset("b"), frozenset("d")} <= found
    assert frozenset({"b", "d", "o", "o/c"}) in found
    assert frozenset({"o/c"}) not in found  # a file without its folder
