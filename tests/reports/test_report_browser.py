"""Reports as a browser shows them: nothing asked for, nothing complained of, nothing too wide."""

import pytest
import torch

from pipeline.federation.plan import build_plan
from pipeline.reports.listing import read_listed, results_in
from pipeline.reports.page import index_html, read, report_html, write_report
from pipeline.reports.partition import partition_html
from pipeline.runs.partition import look
from pipeline.settings import RunConfig
from tests.reports import chromium
from tests.reports.report_folders import HOSTILE, made_bench, made_run, made_sweep, real_run
from tests.runs.small_runs import small

WIDTHS = (400, 1280)
OUTSIDE = """[...document.querySelectorAll("body *")].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 1 && !e.closest(".scroll, .skip, svg, title");
}).map((e) => e.outerHTML.slice(0, 80))"""
CUT = """[...document.querySelectorAll("svg.chart text")].filter((e) => {
  const box = e.getBoundingClientRect(), svg = e.closest("svg").getBoundingClientRect();
  return box.left < svg.left - 12 || box.right > svg.right + 12;
}).map((e) => e.lastChild.textContent)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.find() is None:
        pytest.skip(f"no browser is installed: install one of {', '.join(chromium.NAMES)}")
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    bench = made_bench(folder / "bench.jsonl")
    several = folder / "several.html"
    run = real_run(folder / "real")
    made = [
        write_report(run),
        write_report(real_run(folder / "classes", classes=400, rounds=1)),
        write_report(made_run(folder / "domains", 200, 3, 200)),
        write_report(made_sweep(folder / "sweep")),
    ]
    several.write_bytes(report_html([read(run), read(folder / "domains"), read(bench)]))
    index = folder / "index.html"
    rows = [read_listed(each) for each in (run, *results_in(folder))]
    index.write_bytes(index_html(rows * 4, folder, "index"))
    partition = folder / "partition.html"
    table = small(classes=90)
    config = RunConfig(held_out=((),), partition="iid", clients=12)
    plan = build_plan(table, config)
    looked = look(table, plan, "torch", torch.device("cpu"), ["odd"], dataset="d", timed=False)
    partition.write_bytes(partition_html(looked, "./run.sh federate c.h5"))
    named = dict(zip(("run", "classes", "domains", "sweep"), made, strict=True))
    return {"index": index, "partition": partition, "several": several, **named}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name", ["run", "classes", "domains", "sweep", "several", "index", "partition"]
)
def test_fits_asks_for_nothing_and_complains_of_nothing(browser, pages, name, width, dark):
    browser.open(pages[name], width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(OUTSIDE) == []
    assert browser.run(CUT) == []
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [
        pages[name].resolve().as_uri()
    ]


def test_what_people_look_for_is_there(browser, pages):
    browser.open(pages["run"], 1280)
    text = browser.run("document.body.innerText")
    for words in ("Results on held-out domains", "Accuracy and loss by round", "training loss",
                  "Clients", "Confusion matrix", "before the adapter", "after the adapter",
                  "after it, by domain",
                  "Cost against the uncached protocol", "unseen", "zero-shot"):  # fmt: skip
        assert words in text
    assert browser.run("document.title") == "FedCLIP on small, 3 held-out domains"
    assert HOSTILE[0] in text and browser.run("document.scripts.length") == 1


def test_runs_are_filtered_and_their_curves_laid_over_each_other(browser, pages):
    browser.open(pages["index"], 1280)
    shown = "[...document.querySelectorAll('tbody tr')].filter((row) => !row.hidden).length"
    drawn = "document.querySelectorAll('.overlay svg.chart path.line').length"
    every = browser.run(shown)
    ticked = browser.run("document.querySelectorAll('input[data-at]:checked').length")
    assert browser.run(drawn) == ticked == browser.run(
        "document.querySelectorAll('.overlay .legend li').length"
    ) == 4  # fmt: skip
    sets = "document.querySelectorAll('tr:has(input[data-at]:checked) td:nth-child(2)')"
    assert browser.run(f"new Set([...{sets}].map((cell) => cell.textContent)).size") == 1
    browser.run("document.querySelector('.overlay .legend button').click()")
    assert browser.run(drawn) == 3
    browser.run("document.querySelector('input[value=test]').click()")
    browser.run("document.querySelector('[data-do=none]').click()")
    assert browser.run(drawn) == 0

    def sift(words: str) -> int:
        box = "document.querySelector('.filter input')"
        browser.run(f"{box}.value = {words!r}; {box}.dispatchEvent(new Event('input'))")
        return browser.run(shown)

    assert sift("data=made method=fedavg") == 4 and sift("rounds=3.0 data=made") == 4
    assert sift("-data=made") == every - 4 and sift("no such thing") == 0
    sift("data=made")
    browser.run("document.querySelector('[data-do=shown]').click()")
    assert browser.run(drawn) == 4 and browser.complaints() == []


def test_light_and_dark_differ_and_words_stand_out(browser, pages):
    colours = []
    for dark in (False, True):
        browser.open(pages["run"], 1280, dark)
        for place in ("body", ".lead", "figcaption", "svg.chart text", "td.up, td.down, td"):
            colours.append(
                browser.run(
                    f"[getComputedStyle(document.querySelector({place!r}))."
                    f"{'fill' if 'svg' in place else 'color'},"
                    " getComputedStyle(document.body).backgroundColor].join(' ')"
                )
            )
            assert contrast(colours[-1]) >= 4.5, (place, dark, colours[-1])
    assert colours[0] != colours[5]


def contrast(pair: str) -> float:
    """WCAG 2's ratio of two rgb() colours, 1 to 21."""
    values = [int(n) for n in pair.replace("rgb(", "").replace(")", ",").replace(",", " ").split()]
    shares = [v / 255 for v in values]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    lights = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear[:3], linear[3:])]
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_words_in_charts_are_large_enough_on_a_narrow_screen(browser, pages):
    browser.open(pages["run"], 400)
    heights = browser.run(
        "[...document.querySelectorAll('svg.chart text')].map((e) => {"
        " const m = e.getScreenCTM(); return Math.hypot(m.a, m.b) *"
        " parseFloat(getComputedStyle(e).fontSize); })"
    )
    assert heights and min(heights) >= 9


def test_a_click_on_a_head_sorts_by_number(browser, pages):
    browser.open(pages["sweep"], 1280)
    find = "[...document.querySelectorAll('table')].find((t) => t.innerText.startsWith('trial'))"
    column = browser.run(f"[...{find}.rows[0].cells].findIndex((c) => c.innerText == 'validation')")
    read_column = f"[...{find}.tBodies[0].rows].map((r) => r.cells[{column}].dataset.sort)"
    for downwards in (True, False):
        browser.run(f"{find}.rows[0].cells[{column}].firstChild.click()")
        found = browser.run(read_column)
        known = [float(value) for value in found if value]
        assert known == sorted(known, reverse=downwards)
        assert found[len(known) :] == [""] * (len(found) - len(known)) and len(known) < 60
    assert browser.run("document.querySelectorAll('[aria-sort=ascending]').length") == 1


def test_the_policy_holds_against_a_page_that_lets_a_script_in(browser, pages, tmp_path):
    """The watch itself is watched: what must not happen is seen when it is tried."""
    evil = tmp_path / "evil.html"
    tries = "<script>document.title='owned'</script><img src='http://127.0.0.1:9/x.png'>"
    evil.write_text(pages["run"].read_text("utf-8").replace("</main>", tries + "</main>"), "utf-8")
    browser.open(evil, 1280)
    assert browser.run("document.title") == "FedCLIP on small, 3 held-out domains"
    assert len(browser.complaints()) == 2
    wide = tmp_path / "wide.html"
    wide.write_text(
        pages["run"].read_text("utf-8").replace("</main>", f"<pre>{'x' * 999}</pre></main>"),
        "utf-8",
    )
    browser.open(wide, 400)
    assert browser.run("document.documentElement.scrollWidth") > 400
