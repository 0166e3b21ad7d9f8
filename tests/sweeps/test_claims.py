"""Claims of trials and members' heartbeats, on files alone."""

import os
import threading
import time

from pipeline.sweeps import claims as claiming
from pipeline.sweeps.claims import Claims, joined


def test_of_many_who_claim_one_gets_each(tmp_path):
    ids = [f"{number:012x}" for number in range(40)]
    crowd = [Claims(tmp_path) for _ in range(6)]
    got: dict[str, list[str]] = {}
    for each in crowd:
        each.begin()
    gate = threading.Barrier(len(crowd))

    def run(each: Claims) -> None:
        gate.wait()
        each.free(ids)
        got[each.name] = each.take(ids)

    threads = [threading.Thread(target=run, args=(each,)) for each in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(id for own in got.values() for id in own) == ids
    assert crowd[0].living() == 6
    # One that leaves sets its claims free; of those that take them over one gets each.
    crowd[0].end()
    left = got[crowd[0].name]
    assert set(crowd[1].free(ids)) == {*left, *got[crowd[1].name]} and crowd[1].living() == 5
    taken = [each.take(left) for each in crowd[1:] if each.free(ids)]
    assert [id for own in taken for id in own].count(left[0]) == 1 if left else True
    assert set(crowd[1].take(got[crowd[1].name])) == set(got[crowd[1].name])  # still its own


def test_a_claim_without_a_name_is_waited_for(tmp_path, monkeypatch):
    mine = Claims(tmp_path)
    mine.begin()
    (tmp_path / "claims" / "abc.1").touch()  # its maker was killed before it wrote its name
    assert mine.free(["abc"]) == [] and mine.take(["abc"]) == []
    monkeypatch.setattr(claiming, "PATIENCE", 0.0)
    assert mine.free(["abc"]) == ["abc"] == mine.take(["abc"])
    assert (tmp_path / "claims" / "abc.2").read_text() == mine.name


def test_strange_files_among_members_and_claims_are_no_hindrance(tmp_path):
    mine = Claims(tmp_path)
    mine.begin()
    for name in ("x", "-", "a-b-c", f"{os.uname().nodename}-99999999999999999999-aaaa", "members"):
        (tmp_path / "members" / name).write_bytes(b"\xff\0")
        (tmp_path / "claims" / name).write_bytes(b"\xff\0")
    (tmp_path / "members" / "folder").mkdir()
    (tmp_path / "claims" / "ab.7").write_bytes(b"\xff\xfe not a member")
    assert mine.take(["aa"]) == ["aa"] and mine.take(["ab"]) == ["ab"]
    assert mine.living() >= 1


def test_a_heart_beats_while_a_member_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(claiming, "BEAT", 0.01)
    with joined(tmp_path) as mine:
        file, seen = tmp_path / "members" / mine.name, set()
        until = time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(file.read_bytes())
        assert len(seen) >= 3
    assert not file.exists() and not any(t.name == "heartbeat" for t in threading.enumerate())
