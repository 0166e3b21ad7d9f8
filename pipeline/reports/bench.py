"""What the page of a benchmark's results shows."""

from pipeline.groups import by_key
from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.svg import Markup
from pipeline.reports.render import Figure, Key, render
from pipeline.reports.trials import BenchData, Case


def bench_part(bench: BenchData, anchor: str) -> Markup:
    """Bars of seconds a unit against the floor, and the table of all cases."""
    groups = by_key(((case.benchmark, case.shape, case.unit), case) for case in bench.cases)
    machine = bench.machine
    facts = (machine.get("cpu"), f"{machine.get('cores', '?')} cores", machine.get("gpu"))
    return render(
        "bench.html",
        anchor=anchor,
        bench=bench,
        lead=", ".join(str(part) for part in (*facts, machine.get("date")) if part),
        figures=[_figure(*title, cases) for title, cases in groups.items()],
        rows=[_row(case) for case in bench.cases],
    )


def _figure(benchmark: str, shape: str, unit: str, cases: list[Case]) -> Figure:
    bars = [
        Bar(case.name, "rest" if case.times_baseline == 1.0 else "c0", case.p50,
            f"{_time(case.p50)}{f' ({case.times_baseline:.2f}x)' if case.times_baseline else ''}",
            case.floor, (case.p20, case.p80))
        for case in cases
    ]  # fmt: skip
    text = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    keys = [Key("baseline", "rest", "bar")] if any(b.style == "rest" for b in bars) else []
    keys += [Key("floor", "", "mark")] if any(case.floor for case in cases) else []
    name = f"{benchmark}: {shape}"
    return Figure(name, bar_chart(name, text, bars), keys, f"Time per {unit}.")


def _row(case: Case) -> tuple[list[str], list[tuple[str | None, float | None]]]:
    """The words of a case, and what its numbers are shown as and sorted by."""
    above = case.p50 / case.floor if case.floor else None
    return [case.benchmark, case.name, case.shape], [
        (f"{_time(case.p50)}/{case.unit}", case.p50),
        (f"{_time(case.p20)} to {_time(case.p80)}", case.p80),
        (case.times_baseline and f"{case.times_baseline:.2f}x" or None, case.times_baseline),
        (case.floor and _time(case.floor) or None, case.floor),
        (above and f"{above:.2f}x" or None, above),
    ]


def _time(seconds: float) -> str:
    """3.57 ms: three digits and a unit."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} \u00b5s"
