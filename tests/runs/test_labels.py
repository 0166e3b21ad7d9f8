"""Names and tags of runs: beside the run, never part of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.store import write_table
from pipeline.errors import ConfigError
from pipeline.runs.federate import federate
from pipeline.runs.labels import FILE, LONGEST, Label, label_of, read_label, write_label
from tests.runs.small_runs import config, small

GOOD = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=LONGEST)


@given(name=st.none() | GOOD, tags=st.lists(GOOD, max_size=4))
def test_a_label_is_read_as_it_was_written(tmp_path_factory, name, tags):
    folder = tmp_path_factory.mktemp("label")
    write_label(folder, label_of(name, tags))
    assert read_label(folder) == Label(name, tuple(dict.fromkeys(tags)))
    assert (folder / FILE).exists() == bool(name or tags)


@pytest.mark.parametrize("word", ["", "  ", "a\nb", "\x1b[2J", "\u202e", "x" * (LONGEST + 1)])
def test_what_cannot_be_shown_in_a_line_is_refused(word):
    with pytest.raises(ConfigError, match="--name"):
        label_of(word)
    with pytest.raises(ConfigError, match="--tag"):
        label_of("fine", ["fine", word])


def test_a_name_changes_no_id_and_no_byte_and_can_come_later(tmp_path):
    table, settings = small(), config(rounds=2)
    plain = federate(table, settings, runs=tmp_path / "plain")
    named = federate(table, settings, runs=tmp_path / "named", name="first", tags=("a", "b"))
    one, other = (tmp_path / "plain").iterdir(), (tmp_path / "named").iterdir()
    (one,), (other,) = one, other
    assert one.name == other.name and named["results"] == plain["results"]
    for file in ("config.json", "rounds.jsonl", "adapter.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    done = {p.name: p.read_bytes() for p in other.iterdir() if p.name != FILE}
    federate(table, settings, runs=tmp_path / "named", name="second")
    assert read_label(other) == Label("second", ("a", "b"))
    federate(table, settings, runs=tmp_path / "named")
    assert read_label(other) == Label("second", ("a", "b"))
    assert done == {p.name: p.read_bytes() for p in other.iterdir() if p.name != FILE}
    federate(table, settings, runs=tmp_path / "named", force=True)
    assert read_label(other).name == "second"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 3, "tags": []}',
                                  '{"name": "x", "tags": "y"}', "\xff"])  # fmt: skip
def test_a_damaged_label_is_a_note_and_is_replaced(tmp_path, text):
    from pipeline.reports.data import read_run

    write_table(tmp_path / "cache.h5", small())
    federate(small(), config(rounds=1), runs=tmp_path, out=tmp_path / "run", name="first")
    (tmp_path / "run" / FILE).write_text(text, "latin-1")
    run = read_run(tmp_path / "run")
    assert run.label == Label() and any("name and tags" in note for note in run.notes)
    write_label(tmp_path / "run", label_of("again"))
    assert json.loads((tmp_path / "run" / FILE).read_text()) == {"name": "again", "tags": []}
