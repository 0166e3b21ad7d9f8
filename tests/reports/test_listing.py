"""The list of runs: what it holds, its order and filter, its page, and damaged folders in it."""

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.runs import ORDERS
from pipeline.reports import listing
from pipeline.reports.data import Curve, read_run
from pipeline.reports.listing import Listed, list_records, matches, ordered, read_listed
from pipeline.reports.page import FOLDED, MOST, index_html
from pipeline.runs.labels import label_of, write_label
from tests.cli.commands import call
from tests.reports.report_folders import HOSTILE, made_run, made_sweep
from tests.reports.report_pages import harmless


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs, a sweep, a damaged run and what is none of these."""
    top = tmp_path_factory.mktemp("runs")
    for at, method in enumerate(("fedavg", "ditto", "fedavg")):
        run = made_run(top / f"run{at}", 3, 4, 3)
        described = json.loads((run / "config.json").read_text())
        described["settings"] |= {"method": method, "lr": 10.0**-at, "seed": at}
        (run / "config.json").write_text(json.dumps(described))
        write_label(run, label_of(HOSTILE[at], ["paper", f"t{at}"]))
    made_sweep(top / "sweep")
    bad = made_run(top / "bad", 2, 2, 1)
    (bad / "rounds.jsonl").write_text("x\n")
    (top / "other").mkdir()
    (top / "file").write_text("x")
    for at, name in enumerate(("run1", "sweep", "run0", "bad", "run2")):
        for file in (top / name).iterdir():
            os.utime(file, (10**9 + at, 10**9 + at))
    return top


def test_everything_is_listed_newest_first_and_damage_said(folder):
    done = call("runs", folder, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["folder"].rsplit(os.sep, 1)[1] for one in found] == [
        "run2", "bad", "run0", "sweep", "run1"
    ]  # fmt: skip
    by = {one["folder"].rsplit(os.sep, 1)[1]: one for one in found}
    assert by["bad"]["status"] == "damaged" and "rounds.jsonl" in by["bad"]["error"]
    assert by["run0"]["name"] == HOSTILE[0] and by["run0"]["tags"] == ["paper", "t0"]
    assert by["run0"]["unseen"] == pytest.approx(0.61)
    assert by["run0"]["zero_shot_unseen"] == pytest.approx(0.6)
    assert by["run0"]["dataset"] == "made" and by["run0"]["settings"]["method"] == "fedavg"
    assert by["sweep"]["kind"] == "sweep" and by["sweep"]["val_accuracy"] > 0.5
    text = call("runs", folder).stdout
    assert text.splitlines()[-1] == str(folder / "index.html")
    assert "damaged" in text and "rounds.jsonl" in text


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["method=fedavg"], {"run0", "run2"}),
        (["method=FEDAVG", "lr=1e-2"], {"run2"}),
        (["lr=1"], {"run0"}),
        (["lr=1.0"], {"run0"}),
        (["lr=x"], set()),
        (["seed=1"], {"run1"}),
        (["tag=paper"], {"run0", "run1", "run2"}),
        (["tag=pap"], set()),
        (["status=damaged"], {"bad"}),
        (["dataset=made", "kind=run"], {"run0", "run1", "run2"}),
        (["Größe"], {"run2"}),
        (["held-out=domain 1"], {"run0", "run1", "run2"}),
        (["no=such setting"], set()),
    ],
)
def test_filters(folder, words, names):
    rows = [read_listed(each) for each in listing.results_in(folder)]
    found = {row.folder.name for row in rows if all(matches(row, word) for word in words)}
    assert found == names


@given(st.lists(st.tuples(st.floats(0, 1) | st.none(), st.floats(0, 1) | st.none())))
def test_every_order_keeps_every_line_and_puts_the_best_first(pairs):
    rows = [Listed(listing.Path(str(at)), figures={"val_accuracy": p, "unseen": p}, when=at)
            for at, p in enumerate(pairs)]  # fmt: skip
    for by in ORDERS:
        assert sorted(r.when for r in ordered(rows, by)) == sorted(r.when for r in rows)
    values = [row.figures["val_accuracy"][1] for row in ordered(rows, "validation")]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=True) and values[: len(known)] == known
    assert ORDERS == listing.ORDERS


def test_curves_are_means_over_trainings_that_hold_their_value(tmp_path):
    run = made_run(tmp_path / "run", 3, 120, 2)
    curves = read_listed(run).curves
    data = read_run(run)
    wanted = [
        sum(sum(c.values[round] for c in fold.validation.values()) / 2 for fold in data.folds) / 2
        for round in curves["validation"].rounds
    ]
    assert curves["validation"].values == pytest.approx(wanted)
    assert len(curves["validation"].rounds) == listing.POINTS
    assert curves["validation"].rounds[-1] == 119 and curves["test"].rounds == (0, 50, 100)
    apart = [Curve((0, 4), (0.5, 0.7)), Curve((2,), (0.1,))]
    assert listing._over_folds(apart) == Curve((2, 4), pytest.approx((0.3, 0.4)))
    assert listing._over_folds([Curve((), ()), Curve((2,), (0.1,))]) == Curve((), ())


def test_the_page_is_harmless_and_links_to_what_is_there(folder, tmp_path):
    (folder / "run0" / "report.html").write_text("x")
    rows = [read_listed(each) for each in listing.results_in(folder)]
    html = index_html(rows, tmp_path, "title")
    harmless(html)
    text = html.decode()
    (link,) = re.findall(r'href="(\./[^"]+)"', text)
    assert (tmp_path / link).samefile(folder / "run0" / "report.html")
    assert list_records(rows) and text.count("<tr") == 6


def test_nothing_to_list_is_said(tmp_path):
    done = call("runs", tmp_path)
    assert done.exit_code == 0 and "none yet" in done.stderr and not done.stdout
    call("runs", tmp_path / "none", code=1)
    made_run(tmp_path / "run", 1, 1, 1)
    assert "none matches" in call("runs", tmp_path, "--filter", "nothing of that name").stderr


def test_a_report_takes_a_folder_of_runs_and_folds_many(folder, tmp_path):
    def report(*words: object) -> str:
        call("report", *words)
        return (tmp_path / "r.html").read_text()

    text = report(folder, "--out", tmp_path / "r.html")
    assert text.count('<details class="part">') == 4 > FOLDED and "damaged" in text
    assert report(folder / "run0", folder / "run1", "--out", tmp_path / "r.html").count(
        '<details class="part">') == 0  # fmt: skip
    call("report", folder / "bad", code=1)
    for at in range(MOST + 1):
        made_run(tmp_path / "many" / f"r{at}", 1, 1, 1)
    text = report(tmp_path / "many", "--out", tmp_path / "r.html")
    assert text.count("<tr") == MOST + 2 and "<article" not in text
