"""A benchmark's result: one JSON line a case, one table for people, one picture."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One case of one benchmark; seconds are of one unit of work (a step, a run, an image)."""

    benchmark: str
    case: str
    shape: str
    unit: str
    p20: float
    p50: float
    p80: float
    samples: int
    times_baseline: float | None = None  # p50 of the benchmark's baseline / this p50
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    of_ceiling: float | None = None  # of what this machine reached in the same run
    peak_extra_bytes: int | None = None
    error: float | None = None  # 99th percentile, against float64
    plain_error: float | None = None  # the same of plain float32 torch


def write(rows: list[Row], machine: dict, name: str) -> Path:
    """benchmarks/results/<machine>-<date>.jsonl: the machine, then a line a row.

    Rows of benchmarks that were not run this time are kept from the file of the same day.
    """
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{machine['date']}.jsonl"
    new = {row.benchmark for row in rows}
    kept = [old for old in read(file)[1] if old.benchmark not in new] if file.exists() else []
    lines = [{"machine": machine}, *(asdict(row) for row in [*kept, *rows])]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file


def read(file: Path) -> tuple[dict, list[Row]]:
    """The machine and the rows of a result file."""
    first, *rest = file.read_text("utf-8").splitlines()
    return json.loads(first)["machine"], [Row(**json.loads(line)) for line in rest]


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    head = ["benchmark", "case", "shape", "time", "20-80 %", "of baseline", "GFLOP/s", "GB/s",
            "of ceiling", "extra MB", "error", "plain error"]  # fmt: skip
    body = [
        [
            row.benchmark,
            row.case,
            row.shape,
            f"{_time(row.p50)}/{row.unit}",
            f"{_time(row.p20)}-{_time(row.p80)}",
            _number(row.times_baseline, "{:.2f}x"),
            _number(row.flops_per_second, "{:.0f}", 1e-9),
            _number(row.bytes_per_second, "{:.1f}", 1e-9),
            _number(row.of_ceiling, "{:.0%}"),
            _number(row.peak_extra_bytes, "{:.0f}", 1e-6),
            _number(row.error, "{:.1e}"),
            _number(row.plain_error, "{:.1e}"),
        ]
        for row in rows
    ]
    widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def plot(rows: list[Row], file: Path) -> None:
    """Bars of seconds a unit, one panel a benchmark; whiskers from p20 to p80."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.benchmark}, {row.shape} (s/{row.unit})", []).append(row)
    figure, axes = pyplot.subplots(
        len(groups), figsize=(8, 0.9 * len(groups) + 0.32 * len(rows)), squeeze=False,
        height_ratios=[len(group) + 1 for group in groups.values()], layout="constrained",
    )  # fmt: skip
    for axis, (title, group) in zip(axes[:, 0], groups.items(), strict=True):
        spread = [[r.p50 - r.p20 for r in group], [r.p80 - r.p50 for r in group]]
        axis.barh([r.case for r in group], [r.p50 for r in group], xerr=spread, color="#4477aa")
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _time(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)
