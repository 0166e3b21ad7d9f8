"""Figures for papers: their records by hand-computed numbers, sizes, fonts, and hostile names."""

import io
import json
import re
import statistics
import sys

import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.reports import figures
from pipeline.reports.closed_form import maps_of
from pipeline.reports.data import read_result
from pipeline.reports.figure_data import collect
from pipeline.reports.page import read
from tests.cli.commands import call, refused
from tests.packages import need
from tests.reports.report_folders import HOSTILE, made_run, made_sweep
from tests.reports.table_folders import made, result, swept


def head(solver="gda", shape=1.0, strength=0.5, accuracy=0.7) -> dict:
    return {"solver": solver, "shape": shape, "strength": strength, "accuracy": accuracy}


def solved(accuracy: float = 0.7, **changed) -> dict:
    """An entry of `results` of a closed form, which tried two solvers."""
    tried = [head(s, a, b, 0.5 + a * b / 10)
             for s, shapes in (("gda", (1.0, 2.0)), ("ridge", (0.1, 1.0, 10.0)))
             for a in shapes for b in (0.0, 0.5)]  # fmt: skip
    found = {**head(), "temperature": 0.25, "tuned_on": "rows", "rows": 10, "clients": 4,
             "bytes": {"up": 4000, "down": 8000}, "tried": tried, **changed}  # fmt: skip
    return {**result("x", accuracy), "closed_form": found}


def trial(seed: int, accuracy: float, **settings) -> dict:
    one = result("x", accuracy)
    one |= {"bytes_a_round": {"up": 100, "down": 200, "clip": None}}
    one |= {"clients": {"accuracy": {"a": accuracy, "b": accuracy + 0.1}, "worst": accuracy}}
    return {"settings": settings, "seed": seed, "val_accuracy": accuracy, "results": [one],
            "rounds": 5}  # fmt: skip


def methods(folder):
    values = {"fedavg": (0.6, 0.64), "median": (0.7, 0.71)}
    return swept(folder, [trial(s, v, method=m) for m, own in values.items()
                          for s, v in enumerate(own)])  # fmt: skip


def pictures(*folders):
    return collect([read(folder) for folder in folders], folders)[0]


def test_bars_clients_and_bytes_are_the_trials_figures(tmp_path):
    found = pictures(methods(tmp_path / "s"))
    assert set(found) == {"bars", "clients", "bytes"}
    bars, start = (found["bars"].keywords[name] for name in ("rows", "zero_shot"))
    assert [bar.name for bar in bars] == ["fedavg", "median"] and start == 0.5
    for bar, values in zip(bars, ((0.6, 0.64), (0.7, 0.71)), strict=True):
        assert bar.mean == pytest.approx(statistics.mean(values), abs=1e-12)
        assert bar.std == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert found["clients"].keywords["groups"]["fedavg"] == pytest.approx((0.62, 0.72))
    assert [bytes for bytes, _ in found["bytes"].keywords["points"]] == [5 * 300.0, 5 * 300.0]


@pytest.mark.parametrize(
    "method, fraction, bytes",
    [
        ("fedavg", 1.0, 12000 + 5 * 300),
        ("fedavg", 0.5, 12000 + 5 * 150),
        ("closed-form", 1.0, 12000),
    ],
)
def test_a_closed_form_s_sums_are_sent_once(tmp_path, method, fraction, bytes):
    one = trial(0, 0.6, method=method, client_fraction=fraction)
    one["results"][0]["closed_form"] = solved()["closed_form"]
    points = pictures(swept(tmp_path / "s", [one]))["bytes"].keywords["points"]
    assert [sent for sent, _ in points] == [bytes]


def test_a_map_has_every_head_at_its_place():
    grids = maps_of(read_result(solved()).closed_form)
    assert [grid.name for grid in grids] == ["gda", "ridge"]
    gda, ridge = grids
    assert gda.x == ("0", "0.5") and gda.y == ("1", "2") and ridge.y == ("0.1", "1", "10")
    assert gda.values == ((0.5, 0.55), (0.5, 0.6)) and ridge.values[2] == (0.5, 1.0)
    assert gda.marked == (0, 1) and ridge.marked is None


def test_one_head_is_no_map(tmp_path):
    alone = solved(tried=[head()])
    assert not maps_of(read_result(alone).closed_form)
    unscored = solved(tried=[head(accuracy=None), head(shape=2.0, accuracy=None)])
    assert not maps_of(read_result(unscored).closed_form)


def test_the_validation_map_of_two_settings(tmp_path):
    trials = [trial(s, 0.5 + 0.1 * a + 0.01 * s, mu=m, lr=lr)
              for a, (m, lr) in enumerate([(0.1, 1e-3), (0.1, 1e-2), (0.01, 1e-3)])
              for s in range(2)]  # fmt: skip
    folder = swept(tmp_path / "s", trials, method="fedprox")
    (grid,) = pictures(folder)["validation-s"].keywords["grids"]
    assert (grid.y_name, grid.x_name) == ("mu", "lr")
    assert grid.y == ("0.01", "0.1") and grid.x == ("0.001", "0.01")
    assert grid.values[0][0] == pytest.approx(0.705) and grid.values[0][1] is None
    assert grid.marked == (0, 0)


def test_rounds_have_a_band_over_seeds(tmp_path):
    folders = []
    for seed in range(2):
        folder = made_run(tmp_path / f"run{seed}", 3, 4, 1)
        config = json.loads((folder / "config.json").read_text())
        config["settings"]["seed"] = seed
        (folder / "config.json").write_text(json.dumps(config))
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        for line in lines:
            line["folds"][0]["val_accuracy"] = {"a": 0.5 + 0.1 * seed, "b": 0.7 + 0.1 * seed}
        (folder / "rounds.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        folders.append(folder)
    (band,) = pictures(*folders)["rounds-validation"].keywords["bands"]
    assert band.rounds == (0, 1, 2, 3)
    assert band.mean == pytest.approx([0.65] * 4)
    assert band.std == pytest.approx([statistics.stdev((0.6, 0.7))] * 4)


def test_what_has_no_figure_is_one_line(tmp_path):
    run = made(tmp_path / "r", [result("x", 0.6)], finished=False)
    with pytest.raises(ConfigError, match="nothing to draw") as refusal:
        pictures(run)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match=r"28 configurations.* room for 24"):
        pictures(made_sweep(tmp_path / "s", 90))


def test_missing_matplotlib_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ("report", methods(tmp_path / "s"), "--figures", tmp_path / "f")
    refused(*words, code=1, match="requirements-figures.txt")
    assert not (tmp_path / "f").exists()


NAMES = [*HOSTILE, "$\\frac{1}{0}$", "a\nb\x1b[31m", "x" * 300, "../up", ""]


def test_files_have_their_size_and_fonts(tmp_path):
    need("matplotlib")
    run = made(tmp_path / "r", [solved()], method="closed-form")
    words = ("report", methods(tmp_path / "s"), run, "--out", tmp_path / "r.html", "--figures")
    files = [tmp_path / line for line in call(*words, tmp_path / "f").stdout.split()]
    assert len(files) == 4 * 6 + 1
    for file in files[:-1]:
        content = file.read_bytes()
        inches = figures.WIDTHS["one-column" if "one-column" in file.name else "two-columns"]
        if file.suffix == ".png":
            assert Image.open(io.BytesIO(content)).width == round(inches * 300)
        elif file.suffix == ".pdf":
            assert b"/FontFile2" in content and b"/Type3" not in content
        else:
            (points,) = re.findall(rb'width="([0-9.]+)pt"', content)
            assert float(points) == pytest.approx(72 * inches) and b"<text" not in content


def test_strange_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    need("matplotlib")
    monkeypatch.setattr(figures, "WIDTHS", {"one-column": 3.3})
    monkeypatch.setattr(figures, "FORMATS", {"svg": {"Date": None}})
    bands = [figures.Band(name, (0, 1), (0.5, 0.6), (None, None)) for name in NAMES]
    bars = [figures.Bar(name, 0.5, 0.1) for name in NAMES]
    points = [(1e6 * at, bar) for at, bar in enumerate(bars, 1)]
    drawn = {
        "bars": lambda width: figures.bars(width, bars, 0, "x"),
        "../rounds": lambda width: figures.rounds(width, bands, "x"),
        "clients": lambda width: figures.clients(width, dict.fromkeys(NAMES, (0.5, 0.6))),
        "bytes": lambda width: figures.sent(width, points, 0.4, "x"),
    }
    files = figures.write_figures(drawn, tmp_path / "f")
    assert len(set(files)) == 4
    assert all(file.parent == tmp_path / "f" and file.stat().st_size > 1000 for file in files)


def test_a_run_s_page_has_the_map_and_how_it_was_chosen(tmp_path):
    run = made(tmp_path / "r", [solved()], method="closed-form")
    call("report", run)
    page = (run / "report.html").read_text("utf-8")
    part = page.split("<h3>Closed-form head</h3>")[1].split("<h3>")[0]
    assert part.count('class="right"') == 4 + 6 and part.count('<rect class="picked"') <= 2
    assert "shape 10, strength 0.5: 100.00 %" in part
    for said in ("gda", "0.250", "each left out in turn", "1,000", "2,000"):
        assert said in part
