"""A benchmark's result file, and what its page shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import ConfigError
from pipeline.groups import by_key
from pipeline.json_files import content_of, fraction, read_lines
from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.svg import Markup
from pipeline.reports.render import Figure, Key, render
from pipeline.runs.labels import Label


@dataclass(frozen=True)
class Case:
    """One row of a benchmark; seconds are of one unit of work."""

    benchmark: str
    name: str
    shape: str
    unit: str
    p20: float
    p50: float
    p80: float
    floor: float | None  # seconds at the ceiling that the same run measured
    times_baseline: float | None


@dataclass(frozen=True)
class BenchData:
    """A result file of ./run.sh bench."""

    name: str
    file: Path
    machine: dict[str, Any]
    cases: tuple[Case, ...]
    notes: tuple[str, ...]
    label: Label = Label()
    kind: ClassVar[str] = "Benchmark"

    @property
    def title(self) -> str:
        """Benchmark xeon-2026."""
        return f"{self.kind} {self.name}"


def read_bench(file: Path) -> BenchData:
    """The data of benchmarks/results/*.jsonl.

    Raises ConfigError, in one line, for a file that is not one.
    """
    lines, notes = read_lines(file)
    if not lines or "machine" not in lines[0]:
        raise ConfigError(f"{file}: its first line names no machine; it is not a result of bench")
    with content_of(file):
        machine = dict(lines[0]["machine"])
        cases = tuple(_case(line) for line in lines[1:])
    return BenchData(file.stem, file, machine, cases, tuple(notes))


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


def _case(line: dict[str, Any]) -> Case:
    p20, p50, p80 = (fraction(line[name]) for name in ("p20", "p50", "p80"))
    if p20 is None or p50 is None or p80 is None:
        raise ValueError(f"case {line['case']!r} has no finite time")
    share = fraction(line.get("of_ceiling"))
    return Case(
        *(str(line[name]) for name in ("benchmark", "case", "shape", "unit")),
        p20,
        p50,
        p80,
        p50 * share if share else None,
        fraction(line.get("times_baseline")),
    )
