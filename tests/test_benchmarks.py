"""What benchmarks write and show: rows, tables, pictures, and a README made from them alone."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from benchmarks import (
    compare,
    compiling,
    extraction,
    floor,
    kernels,
    measure,
    peers,
    plots,
    products,
    readme,
    rows,
    trials,
)
from benchmarks import machine as machines
from benchmarks.__main__ import bench
from benchmarks.measure import Times, peak_extra_bytes, take_turns
from pipeline.federation.plan import build_plan
from pipeline.federation.training import to_device
from pipeline.runs.federate import federate
from tests.conftest import MEASURES_PEAKS, ROOT
from tests.packages import need
from tests.processes import python
from tests.runs.small_runs import config, small

CPU = torch.device("cpu")


def row(**changed):
    given = dict(benchmark="lane-step", case="numba", shape="B 32, D 512", unit="lane-step",
                 p20=0.4e-3, p50=0.5e-3, p80=0.6e-3, samples=9, times_baseline=5.25)  # fmt: skip
    return rows.Row(**(given | changed))


def machine(gpu=None, date="2026-01-02"):
    packages = {"torch": "2.13.0", "numba": "0.68.1", "triton": None}
    return {"date": date, "cpu": "A", "cores": 2, "load": 0.5, "gpu": gpu, "packages": packages}


@pytest.mark.parametrize(
    ("page", "made"), [("README.md", readme.chief), ("docs/kernels.md", readme.tables)]
)
def test_the_tables_are_those_of_the_result_files(page, made):
    text = (ROOT / page).read_text("utf-8")
    shown = text.split(readme.BEGIN)[1].split(readme.END)[0].strip()
    assert shown == made(), "run ./run.sh bench --readme"


def test_tables_take_the_newest_file_of_each_device_and_say_what_was_not_measured(
    tmp_path, monkeypatch
):
    results = tmp_path / "results"
    monkeypatch.setattr(rows, "RESULTS", results)
    plain = row(case="torch eager", p50=2.0, times_baseline=1.0)
    for date, seconds in (("2026-01-02", 0.5), ("2026-01-03", 0.25)):
        rows.write([plain, row(p50=seconds)], machine(date=date), "a-2-cores")
    text, chief = readme.tables(results), readme.chief(results)
    assert "250 ms" in text and "500 ms (" not in text and "5.25" in text
    assert text.endswith("GPU: not measured.") and chief.endswith("GPU: not measured.")
    cells = [[cell.strip() for cell in line.split("|")] for line in chief.splitlines()]
    assert ["", "one training step, B 32, D 512", "2 s", "250 ms", "5.25", ""] in cells
    (tmp_path / "docs").mkdir()
    pages = {tmp_path / "README.md": chief, tmp_path / "docs" / "kernels.md": text}
    for page in pages:
        page.write_text(f"above\n{readme.BEGIN}\nold\n{readme.END}\nbelow\n", "utf-8")
    readme.rewrite(tmp_path, results)
    for page, made in pages.items():
        assert page.read_text("utf-8") == f"above\n{readme.BEGIN}\n{made}\n{readme.END}\nbelow\n"
    (tmp_path / "README.md").write_text("no marks", "utf-8")
    with pytest.raises(ValueError, match="needs one line"):
        readme.rewrite(tmp_path, results)


def test_rows_of_other_benchmarks_of_the_day_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    rows.write([row(), row(benchmark="round", case="whole")], machine(), "a")
    file = rows.write([row(p50=1.0)], machine(), "a")
    found = rows.read(file)[1]
    assert {(r.benchmark, r.p50) for r in found} == {("round", 0.5e-3), ("lane-step", 1.0)}


def test_one_picture_a_word_of_the_command(tmp_path):
    need("matplotlib")
    file = tmp_path / "a-2026-01-02.jsonl"
    found = [row(), row(case="torch eager"), row(benchmark="round", times_baseline=None)]
    written = plots.plot_all(found, file)
    assert [p.name for p in written] == ["a-2026-01-02-kernels.png", "a-2026-01-02-round.png"]
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in written)


def test_wrong_code_is_not_timed():
    assert compare.checked("kernel", 2e-8, 1e-8) == 2e-8
    with pytest.raises(compare.Wrong, match="not timed"):
        compare.checked("kernel", 3e-8, 1e-8)
    with pytest.raises(compare.Wrong):
        compare.checked("kernel", float("nan"), 1e-8)


CEILINGS = {"gemm_flops_per_second": 1.0}
WORK = compare.Work("top1", "shape", "row", flops=1.0)


@pytest.mark.parametrize("bad", ["first", "ours", "raises", "late"])
def test_a_wrong_case_costs_only_its_own_row(bad):
    """One wrong row ended the whole bench before anything was printed."""

    def fails() -> float:
        raise RuntimeError("an illegal memory access")

    cases = {name: compare.Case(lambda: None, error=1e-8, ours=True) for name in "abc"}
    which = "a" if bad == "first" else "b"
    cases[which] = {
        "first": compare.Case(fails),
        "ours": compare.Case(lambda: None, error=lambda: 3e-8, ours=True),
        "raises": compare.Case(lambda: None, error=fails, ours=True),
        "late": compare.Case(fails, error=1e-8),
    }[bad]
    *found, fault = compare.compare(WORK, cases, 1e-8, CEILINGS, 1, CPU)
    assert [row.case for row in found] == [name for name in "abc" if name != which]
    assert all((row.times_baseline is None) == (bad == "first") for row in found)
    assert fault.case == f"{which}, shape" and ("not timed" in fault.why) == (bad == "ours")


def test_a_benchmark_that_fails_leaves_the_others_to_be_printed(monkeypatch):
    def fails(*_):
        yield row(case="before")
        raise MemoryError("too much")

    monkeypatch.setattr(machines, "ceilings", lambda *_: {})
    monkeypatch.setattr(kernels, "run", fails)
    monkeypatch.setattr(extraction, "run", lambda *_: [row(case="after")])
    monkeypatch.setattr(products, "run", lambda *_: [])
    monkeypatch.setattr(compiling, "run", lambda *_: [])
    said = CliRunner().invoke(bench, ["kernels", "extract", "--quick", "--json",
                                              "--device", "cpu"])  # fmt: skip
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert [line["case"] for line in lines[1:]] == ["before", "after"]
    assert said.exit_code == 1 and "Error: kernels, : MemoryError: too much" in said.stderr


def test_cases_take_turns_and_speed_ups_are_medians_over_turns(monkeypatch):
    monkeypatch.setattr(measure, "HURRY", math.inf)
    called = []
    cases = {name: compare.Case(lambda name=name: called.append(name)) for name in "ab"}
    compare.compare(WORK, cases, 0.0, CEILINGS, 1, CPU)
    assert called == ["a", "b"] * 2  # memory, one turn: what is timed once is slow
    called.clear()
    found = compare.compare(WORK, cases, 0.0, CEILINGS, 2, CPU)
    # a call that loads the case's code, memory; one round of calls unmeasured, two turns
    assert called == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert [r.case for r in found] == ["a", "b"] and found[0].times_baseline == 1.0
    times = take_turns({"a": lambda: None}, repeats=3, device=CPU)["a"]
    assert len(times.seconds) == len(times.cpu) == 3
    assert Times([1, 2, 3], [4, 4, 4]).quantiles(2)["p50"] == 1


def test_a_quick_run_repeats_less_on_a_busy_machine(monkeypatch):
    monkeypatch.setattr(measure, "HURRY", 0.0)
    for repeats, samples in ((measure.QUICK, 1), (measure.QUICK + 1, measure.QUICK + 1)):
        times = take_turns({"a": lambda: None, "b": lambda: None}, repeats=repeats, device=CPU)
        assert [len(times[name].cpu) for name in "ab"] == [samples, samples]


@pytest.mark.parametrize(
    ("hidden", "moved", "wanted"),
    [(1.0, 1e15, 10e-3), (0.0, 1e15, 12.1e-3), (0.5, 1e15, 11.05e-3), (0.0, 1e8, 0.504)],
)
def test_the_floor_is_products_and_what_they_do_not_hide(hidden, moved, wanted):
    width, batch = 1024, 1  # 2 D (D + 1) = 2.1 million weights
    core = floor.Core(10 * batch * width**2 / 10e-3, 1e-9, hidden, moved)
    assert floor.step_floor(core, width, batch) == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("name", [name for name in peers.PEERS if "compile" not in name])
def test_peers_train_the_same_weights(name, monkeypatch):
    if "JAX" in name:
        need("jax")
    for constant, value in (("WIDTH", 16), ("STEPS", 3), ("BATCH", 5), ("LANES", 2)):
        monkeypatch.setattr(peers, constant, value)
    lanes, given, batches = peers._problem()
    wide = tuple(v.double() if v.is_floating_point() else v for v in given)
    one = peers.AdapterState(*(w.double() for w in lanes[0]))
    truth = peers._trained(one, wide, batches)
    found = peers.PEERS[name][0](lanes, given, batches)()
    assert compare.distance(found, truth) <= 1e-7 < compare.distance(lanes[0], truth)


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_a_trial_of_a_peer_reaches_what_a_run_of_ours_does(kind, tmp_path):
    if kind == "jax":
        need("jax")
    table = small(rows=(41, 37, 50))  # the last batches are shorter
    asked = config(held_out=(("a",),), rounds=2, batch=8, weight_decay=0.2, eps=1e-6, lr=1e-2)
    document = federate(table, asked, runs=tmp_path, device="cpu", backend="torch")
    plan, cached = build_plan(table, asked), to_device(table, CPU)
    train = {"torch": trials._with_torch, "jax": trials._with_jax}[kind](cached)
    found = trials.trial(plan, cached, train, 1e-2, 2)
    assert abs(found - document["results"][0]["unseen"]) <= 1 / 41  # a row may be a tie
    assert found != document["results"][0]["zero_shot"]["unseen"]


@MEASURES_PEAKS
def test_peak_memory_is_what_a_call_took_and_gave_back():
    found = peak_extra_bytes(lambda: torch.ones(8 << 20).sum(), CPU)
    assert 32e6 < found < 48e6


def test_importing_the_commands_loads_neither_numba_nor_torch():
    code = (
        "import sys, pipeline.cli.app; "
        "print(sorted({'numba', 'llvmlite', 'torch'} & {*sys.modules}))"
    )
    assert python(code).strip() == "[]"


def test_the_readme_has_words_for_every_benchmark():
    assert {name for names in rows.COMMANDS.values() for name in names} == set(readme.WORDS)
