"""What a page is for: found by its contents list, repeated by its command, read without doubt."""

import html
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.federation.evaluate import mean
from pipeline.reports import predictions
from pipeline.reports.charts.svg import printable
from pipeline.reports.page import read, report_html, write_report
from pipeline.reports.render import render
from pipeline.runs.federate import federate
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.cli.commands import call
from tests.reports.report_folders import HOSTILE, made_run, made_sweep, real_run
from tests.reports.report_pages import Page, harmless
from tests.runs.small_runs import config, small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return real_run(tmp_path_factory.mktemp("report"), lr=1e-3, weight_decay=0.0)


def command_of(page: bytes) -> list[str]:
    """The words of the command on a page."""
    found = re.search(r"<code>(<span>\./run.sh.*?)</code>", page.decode())[1]
    return shlex.split(html.unescape(re.sub(r"</?span>", "", found)))


def test_every_jump_link_has_one_place_to_go_to(run, tmp_path):
    pages = [
        write_report(run).read_bytes(),
        write_report(made_sweep(tmp_path / "sweep")).read_bytes(),
        report_html([read(run), read(tmp_path / "sweep"), read(made_run(tmp_path / "r", 3, 2, 1))]),
    ]
    for content in pages:
        page = harmless(content)
        places = [a["id"] for _, a in page.tags if "id" in a]
        links = [a["href"][1:] for t, a in page.tags if t == "a"]
        assert len(set(places)) == len(places) and set(links) <= set(places)
        sections = [a["id"] for t, a in page.tags if t == "section" and "id" in a]
        assert len(sections) > 3 and set(sections) <= set(links)


def test_the_command_of_a_run_trains_it_again(run, tmp_path):
    words = command_of(write_report(run).read_bytes())
    assert words[:2] == ["./run.sh", "federate"] and "--lr" in words
    call(*words[1:], "--out", tmp_path / "again")
    for name in ("rounds.jsonl", "adapter.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_a_run_of_settings_that_no_option_sets_has_no_command(tmp_path):
    run = made_run(tmp_path / "run", 3, 2, 1)
    described = json.loads((run / "config.json").read_text())
    described["settings"]["unheard"] = 1
    (run / "config.json").write_text(json.dumps(described))
    assert "To repeat" not in harmless(report_html([read(run)])).text


def test_zero_shot_and_the_adapter_share_a_cell(run):
    page = harmless(write_report(run).read_bytes())
    for result in json.loads((run / "summary.json").read_text())["results"]:
        for name in ("unseen", "participants", "overall", "val_accuracy", "macro_f1"):
            start, value = result["zero_shot"][name], result[name]
            gained = round(100 * (value - start), 2) + 0.0
            cell = f"{100 * start:.2f} → {100 * value:.2f} {gained:+.2f}"
            assert cell in re.sub(r"\s+", " ", page.text), name
    assert "mean over rows" in page.text and "mean over domains" in page.text


@pytest.mark.parametrize("every", ["last", "best", "every"])
def test_test_curves_reach_the_last_round(tmp_path, every):
    folder = real_run(tmp_path, rounds=6, lr=1e-2, eval=every)
    page = harmless(write_report(folder).read_bytes())
    ends = {
        float(re.findall(r"[ML](-?[\d.]+) ", a["d"])[-1])
        for t, a in page.tags
        if t == "path" and "line" in (a.get("class") or "").split() and "L" in a["d"]
    }
    assert len(ends) == 1  # validation, test and loss end at one place: the last round
    assert ("scored only when" in page.text) == (every == "best")
    assert ("test accuracy of the round kept so far" in page.text) == (every == "best")


@pytest.mark.parametrize("method", ["fedavg", "local"])
def test_the_page_after_training_asks_no_adapter_again_and_is_the_same(
    tmp_path, monkeypatch, method
):
    from cache.store import write_table

    cache, out = tmp_path / "cache.h5", tmp_path / "run"
    write_table(cache, small())
    answers = {}
    federate(small(), config(rounds=2, method=method), runs=tmp_path, out=out, device="cpu",
             answers=answers)  # fmt: skip
    asked = report_html([read(out)], cache=cache)
    monkeypatch.setattr(predictions, "top1", lambda *_, **__: pytest.fail("asked again"))
    when = rb"Written [0-9: -]+"
    known = report_html([read(out)], cache=cache, answers=answers)
    assert re.sub(when, b"", known) == re.sub(when, b"", asked)
    wrong = {f: one._replace(answers=one.answers * 0) for f, one in answers.items()}
    shown = report_html([read(out)], cache=cache, answers=wrong)
    assert re.sub(when, b"", shown) != re.sub(when, b"", asked)


def test_one_training_leaves_no_card_alone_in_its_row(tmp_path):
    run = real_run(tmp_path)
    described = json.loads((run / "config.json").read_text())["settings"]
    alone = tmp_path / "alone"
    name = described["held_out"][1][0]
    words = ["federate", str(tmp_path / "cache.h5"), "--held-out", name, "--rounds", "2"]
    call(*words, "--out", alone)
    content = write_report(alone, cache=tmp_path / "cache.h5").read_bytes().decode()
    assert f"{html.escape(name)} held out".split("&")[0] in content
    rows = re.findall(r'<div class="cards .*?</div>', content, re.DOTALL)
    assert rows and all(row.count("<figure") > 1 for row in rows)
    assert "Most frequent mistakes" in content and "confusion matrix" in content


def test_a_sweep_says_what_it_is_of_and_how_its_best_is_trained(tmp_path):
    from cache.store import write_table

    write_table(tmp_path / "cache.h5", small())
    spec = from_options(["lr=1e-3,1e-2"], seeds=2)
    made = sweep(small(), spec, config(rounds=2, partition="iid", clients=2), runs=tmp_path,
                 device="cpu", backend="torch", cache=[str(tmp_path / "cache.h5")])  # fmt: skip
    content = write_report(made["sweep"]).read_bytes()
    text = re.sub(r"\s+", " ", harmless(content).text)
    for words in ("Data set small", "partition iid", "rounds 2", "method fedavg"):
        assert words in text
    assert " ".join(command_of(content)[1:]) == made["best"]["command"].replace("./run.sh ", "")
    trials = [
        json.loads(line) for line in Path(made["sweep"], "trials.jsonl").read_text().splitlines()
    ]
    for lr in (1e-3, 1e-2):
        own = [t["results"] for t in trials if t["settings"]["lr"] == lr]
        for which in ("unseen", "participants", "overall"):
            values = [mean([r[which] for r in results]) for results in own]
            cell = f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"
            assert cell in text


@given(st.text(max_size=30), st.sampled_from([None, 1.5, 7, True]))
def test_whatever_is_put_into_a_template_is_text(name, number):
    class Bench:
        notes = (name,)

    Bench.name = name
    rows = [([name], [(name, number)])]
    made = render("bench.html", anchor="a", bench=Bench, lead=name, figures=[], rows=rows)
    page = Page(str(made))
    assert not {"script", "img", "svg"} & {tag for tag, _ in page.tags}
    (cell,) = [a for t, a in page.tags if t == "td" and "title" in a]
    assert cell["title"] == printable(name)
    assert page.text.count(printable(name)) >= 4


def test_a_name_that_a_template_is_not_given_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("page.html", title=HOSTILE[0])


def test_jinja2_is_imported_where_a_page_is_made_only():
    for module in ("pipeline.cli.app", "pipeline.reports.tables"):
        code = f"import {module}, sys; sys.exit('jinja2' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, module
