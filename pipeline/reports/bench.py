"""The part of a report that tells of a benchmark's results."""

from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.svg import Markup, element
from pipeline.reports.parts import Cell, cards, figure, key, section, table, warnings
from pipeline.reports.trials import BenchData, Case


def bench_part(bench: BenchData, anchor: str) -> Markup:
    """Bars of seconds a unit against the floor, and the table of all cases."""
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in bench.cases:
        groups.setdefault((case.benchmark, case.shape, case.unit), []).append(case)
    machine = bench.machine
    lead = ", ".join(
        str(part)
        for part in (machine.get("cpu"), f"{machine.get('cores', '?')} cores", machine.get("gpu"),
                     machine.get("date"))
        if part
    )  # fmt: skip
    return element(
        "article",
        element("h2", f"Benchmark {bench.name}"),
        element("p", lead, class_="lead"),
        warnings(bench.notes),
        section(
            "Time against the floor",
            "Medians; thin lines go from the 20th to the 80th percentile. The tick is the floor: "
            "the time the work takes at the ceiling that the same run measured on this machine.",
            cards(*(_card(title, cases) for title, cases in groups.items())),
        ),
        section("All cases", "", _table(bench)),
        id=anchor,
    )


def _card(title: tuple[str, str, str], cases: list[Case]) -> Markup:
    benchmark, shape, unit = title
    bars = [
        Bar(case.name, "rest" if case.times_baseline == 1.0 else "c0", case.p50,
            _beside(case), case.floor, (case.p20, case.p80))
        for case in cases
    ]  # fmt: skip
    text = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    keys = [key("baseline", "rest", "bar")] if any(b.style == "rest" for b in bars) else []
    keys += [key("floor", "", "mark")] if any(case.floor for case in cases) else []
    name = f"{benchmark}: {shape}"
    return figure(name, bar_chart(name, text, bars), keys=keys, note=f"Time of one {unit}.")


def _beside(case: Case) -> str:
    faster = "" if case.times_baseline is None else f" ({case.times_baseline:.2f}x)"
    return f"{time_text(case.p50)}{faster}"


def _table(bench: BenchData) -> Markup:
    rows = [
        [
            Cell(case.benchmark, None, "word"),
            Cell(case.name, None, "word name"),
            Cell(case.shape, None, "word name"),
            Cell(f"{time_text(case.p50)}/{case.unit}", case.p50),
            Cell(f"{time_text(case.p20)} to {time_text(case.p80)}", case.p80),
            Cell(_times(case.times_baseline), case.times_baseline or ""),
            Cell("\u2013" if case.floor is None else time_text(case.floor), case.floor or ""),
            Cell(
                _times(case.floor and case.p50 / case.floor),
                case.floor and case.p50 / case.floor or "",
            ),
        ]
        for case in bench.cases
    ]
    heads = ["benchmark", "case", "shape", "median", "20-80 %", "of baseline", "floor", "of floor"]
    return table("All cases", heads, rows)


def time_text(seconds: float) -> str:
    """3.57 ms: three digits and a unit."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} \u00b5s"


def _times(value: float | None) -> str:
    return f"{value:.2f}x" if value else "\u2013"
