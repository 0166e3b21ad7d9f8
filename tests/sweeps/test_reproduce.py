"""reproduce from images to the table: against runs alone, released figures, what is shown."""

import json
import shutil

import numpy as np
import pytest

from cache.store import read_table
from pipeline.datasets.demo.draw import draw_dataset
from pipeline.digests import sealed, unsealed
from pipeline.errors import ConfigError
from pipeline.reports.page import write_report
from pipeline.runs.federate import federate
from pipeline.runs.results import RELEASED_PACS
from pipeline.settings import RunConfig
from pipeline.sweeps.reproduce import reproduce
from pipeline.sweeps.reproduced import FIGURES, compared, doubts, table_of
from tests.cli.commands import call, refused

SEEDS, ROUNDS = 2, 2
WILD = ("optimizer=sgd", "momentum=0", "lr=1e6", "weight_decay=1000", "head=linear")


@pytest.fixture(scope="module")
def made(shared, tmp_path_factory):
    """The command on the PACS photographs with the built-in CLIP: its words, and what it said."""
    folder = tmp_path_factory.mktemp("reproduce")
    words = ["reproduce", shared / "data" / "pacs-subset", "--model", "demo", "--device", "cpu",
             "--seeds", SEEDS, "--rounds", ROUNDS, "--cache", folder / "c.h5",
             "--out", folder / "sweep"]  # fmt: skip
    return folder, words, call(*words)


def test_the_whole_path_ends_in_a_report(made):
    folder, _, result = made
    lines = result.stdout.splitlines()
    assert lines[-1] == str(folder / "sweep" / "report.html")
    page = (folder / "sweep" / "report.html").read_text("utf-8")
    assert "The paper&#39;s table" in page or "The paper's table" in page
    for name in ("art_painting", "cartoon", "photo", "sketch", "mean"):
        assert any(line.startswith(name) for line in lines) and name in page
    assert "no counts are published" in result.stdout  # a folder is not checked
    assert "differs from the published" not in result.stderr
    assert "2 rounds; the released experiment has 200" in result.stdout


def test_its_figures_are_those_of_runs_alone(made, tmp_path):
    folder, *_ = made
    document = unsealed(json.loads((folder / "sweep" / "reproduced.json").read_text("utf-8")))
    table = read_table(folder / "c.h5")
    alone = []
    for seed in range(SEEDS):
        config = RunConfig(
            held_out=tuple((n,) for n in table.domain_names), rounds=ROUNDS, seed=seed
        )
        run = federate(table, config, runs=tmp_path, out=tmp_path / str(seed), device="cpu")
        alone.append(run["results"])
    assert document["seeds"] == [0, 1] and len(document["rows"]) == 4
    for f, row in enumerate(document["rows"]):
        assert row["held_out"] == table.domain_names[f]
        for name in FIGURES:
            values = [results[f][name] for results in alone]
            assert row[name]["mean"] == pytest.approx(np.mean(values))
            assert row[name]["std"] == pytest.approx(np.std(values, ddof=1))
            start = [results[f]["zero_shot"][name] for results in alone]
            assert row["zero_shot"][name] == pytest.approx(np.mean(start))
    overall = [row["overall"]["mean"] for row in document["rows"]]
    assert document["mean"]["overall"]["mean"] == pytest.approx(np.mean(overall))


def test_the_same_command_makes_nothing_again(made):
    folder, words, first = made
    trials = (folder / "sweep" / "trials.jsonl").read_bytes()
    cache = (folder / "c.h5").read_bytes()
    second = call(*words)
    assert second.stdout == first.stdout
    assert "is up to date" in second.stderr and "2 finished" in second.stderr
    assert (folder / "sweep" / "trials.jsonl").read_bytes() == trials
    assert (folder / "c.h5").read_bytes() == cache
    document = json.loads(call(*words, "--json").stdout)
    assert document == unsealed(
        json.loads((folder / "sweep" / "reproduced.json").read_text("utf-8"))
    )
    refused(*words[:-4], "--rounds", 3, *words[-4:], code=1, match="rounds")  # another experiment


def test_the_command_that_it_ends_with_trains_an_adapter_for_predict(made, tmp_path):
    folder, *_ = made
    command = unsealed(json.loads((folder / "sweep" / "reproduced.json").read_text("utf-8")))[
        "again"
    ]
    _, *words = command.split()
    call(*words, "--out", tmp_path / "run", "--device", "cpu")
    picture = next((folder / "sweep").parent.rglob("*.h5"))  # no image: named, not a traceback
    refused("predict", picture, "--run", tmp_path / "run", "--held-out", "sketch", "--device",
            "cpu", code=6, match="not an image")  # fmt: skip


def test_a_known_data_set_is_held_to_its_counts(shared, tmp_path):
    shutil.copytree(shared / "data" / "pacs-subset", tmp_path / "PACS")
    shutil.rmtree(tmp_path / "PACS" / "photo" / "dog")
    words = ["reproduce", "pacs", "--root", tmp_path, "--model", "demo", "--device", "cpu",
             "--seeds", 1, "--rounds", 1, "--cache", tmp_path / "c.h5",
             "--out", tmp_path / "sweep"]  # fmt: skip
    result = call(*words)
    assert "differs from the published PACS" in result.stderr
    document = unsealed(json.loads((tmp_path / "sweep" / "reproduced.json").read_text("utf-8")))
    assert "photo/dog: 0 images, 189 short of the 189 published" in document["counts"]
    assert "not the published images: " in result.stdout
    assert "the released figures are ViT-B/32's" in result.stdout
    assert document["rows"][0]["overall"]["std"] is None  # of one seed
    assert document["mean"]["released"] is None  # this is not ViT-B/32
    whole = " ".join((tmp_path / "sweep" / "report.html").read_text("utf-8").split())
    assert "not the published images" in whole


def fold(held_out, overall, start=0.9):
    figures = {"unseen": overall, "participants": overall, "overall": overall}
    return {"held_out": held_out, **figures, "zero_shot": {name: start for name in FIGURES}}


def test_each_cell_beside_the_released_one():
    ours = {
        seed: [fold(name, value + 0.01 * seed) for name, value in RELEASED_PACS.items()]
        for seed in (0, 1, 2)
    }
    document = compared(ours, RELEASED_PACS)
    for row in [*document["rows"], document["mean"]]:
        assert (row["difference"], row["overall"]["std"]) == pytest.approx((0.01, 0.01))
    assert document["mean"]["released"] == pytest.approx(0.9524)
    facts = {"dataset": "pacs", "model": "ViT-B/32", "counts": [], "rounds": 200, "lost": []}
    shown = table_of({**facts, **document})
    assert shown.count("+1.00") == 5 and "95.15" in shown and "90.00 -> 96.15" in shown
    assert doubts({**facts, "lost": [2]}) == [
        "left out of all means, because their training failed: seeds 2"
    ]
    assert not doubts(facts) and "difference: ours minus released" in shown


def test_the_report_has_the_released_cells(made, tmp_path):
    folder = shutil.copytree(made[0] / "sweep", tmp_path / "sweep")
    assert ">difference<" not in (folder / "report.html").read_text("utf-8")
    ours = {0: [fold(name, value + 0.0123) for name, value in RELEASED_PACS.items()]}
    facts = {"dataset": "pacs", "model": "ViT-B/32", "counts": [], "rounds": 200, "lost": []}
    document = json.dumps(sealed({**facts, **compared(ours, RELEASED_PACS)}))
    (folder / "reproduced.json").write_text(document)
    page = write_report(folder).read_text("utf-8")
    assert ">difference<" in page and page.count(">+1.23<") == 5 and ">95.46<" in page
    assert "PACS reproduced" in page and 'class="unknown"' not in page
    assert page.count(", released<") == 2 * len(RELEASED_PACS) + 2  # each bar's name and hover text
    some = {name: value for name, value in RELEASED_PACS.items() if name != "sketch"}
    document = json.dumps(sealed({**facts, "dataset": "<i>x", **compared(ours, some)}))
    (folder / "reproduced.json").write_text(document)
    page = write_report(folder).read_text("utf-8")
    assert page.count('class="unknown"') == 4 and "&lt;I&gt;X reproduced" in page


def test_a_part_of_the_released_table_has_no_mean():
    document = compared({0: [fold("sketch", 0.5)]}, RELEASED_PACS)
    assert document["rows"][0]["difference"] == pytest.approx(0.5 - RELEASED_PACS["sketch"])
    assert document["mean"]["released"] is None and document["mean"]["difference"] is None


def test_one_domain_and_a_training_that_leaves_the_finite_numbers(tmp_path, monkeypatch):
    draw_dataset(tmp_path / "few", pictures=120)
    settings = {"model": "demo", "seeds": 1, "rounds": 1, "device": "cpu", "workers": 0}
    document = reproduce(
        str(tmp_path / "few" / "sketch"), runs=tmp_path, cache=tmp_path / "c.h5",
        out=tmp_path / "one", **settings,
    )  # fmt: skip
    (row,) = document["rows"]
    assert row["held_out"] == "none" and row["unseen"]["mean"] is None
    assert "-" in table_of(document)
    monkeypatch.setattr("pipeline.sweeps.reproduce.BLOG", WILD)
    with pytest.raises(ConfigError, match="no training succeeded"):
        reproduce(
            str(tmp_path / "few"), runs=tmp_path, cache=tmp_path / "d.h5",
            out=tmp_path / "wild", **(settings | {"rounds": 40}),
        )  # fmt: skip


def test_what_a_person_may_get_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    where = ["--cache", tmp_path / "c.h5", "--out", tmp_path / "s", "--root", tmp_path]
    refused("reproduce", "pcas", *where, code=6, match="Did you mean pacs")
    refused("reproduce", "pacs", *where, code=6, match="download pacs")
    refused("reproduce", tmp_path / "empty", *where, code=6, match="no image")
    refused("reproduce", "", *where, code=6, match="empty")
    call("reproduce", "pacs", *where, "--seeds", 0, code=2)
    call("reproduce", code=2)
    assert not (tmp_path / "c.h5").exists() and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "{}", '{"rows": 3}', '{"rows": [{"held_out": "<b>"}], "mean": {}, "seeds": []}',
     '{"rows": [], "mean": [], "seeds": 2}'],
)  # fmt: skip
def test_a_forged_reproduced_json_is_one_line(made, tmp_path, content):
    folder = shutil.copytree(made[0] / "sweep", tmp_path / "sweep")
    (folder / "reproduced.json").write_text(content)
    with pytest.raises(ConfigError, match=r"reproduced\.json"):
        write_report(folder)
