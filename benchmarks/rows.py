"""Benchmark results: one JSON line per case, and a readable table."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One case of one benchmark; seconds are per unit of work (a step, a run, an image)."""

    benchmark: str
    case: str
    shape: str
    unit: str
    p20: float
    p50: float
    p80: float
    samples: int
    cpu: float | None = None  # median seconds summed over cores: less affected by other load
    times_baseline: float | None = None  # median over the turns of baseline's seconds / this one's
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    of_ceiling: float | None = None  # fraction of what this machine reached in the same run
    peak_extra_bytes: int | None = None
    error: float | None = None  # 99th percentile, against float64
    plain_error: float | None = None  # the same for plain float32 torch
    floor: float | None = None  # least seconds on one core, by its rates in the same run
    of_floor: float | None = None  # floor / cpu


COMMANDS = {  # argument of the command -> its benchmarks
    "peers": ("peers",),
    "contrastive": ("contrastive-by-n",),
    "trials": ("trials",),
    "kernels": ("product", "lane-step", "top1", "contrastive", "compile"),
    "local": ("local-step",),
    "round": ("round",),
    "closed-form": ("sums", "heads"),
    "extract": ("extract",),
}


def write(rows: list[Row], machine: dict, name: str) -> Path:
    """Write benchmarks/results/<machine>-<date>.jsonl: the machine, then one line per row.

    Rows of benchmarks not run this time are kept from the same day's file.
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


def line(row: Row) -> str:
    """A row's case, shape, time, CPU time, speed-up and memory, printed as it is measured."""
    facts = [f"{row.benchmark}, {row.shape}, {row.case}: {time(row.p50)}/{row.unit}"]
    if row.cpu is not None:
        facts.append(f"{time(row.cpu)} of CPU")
    if row.times_baseline is not None:
        facts.append(f"{row.times_baseline:.2f}x")
    if row.peak_extra_bytes is not None:
        facts.append(f"{row.peak_extra_bytes / 1e6:.1f} MB")
    return ", ".join(facts)


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    head = ["benchmark", "case", "shape", "time", "20-80 %", "CPU", "speed-up", "GFLOP/s", "GB/s",
            "of ceiling", "of floor", "extra MB", "error", "plain error"]  # fmt: skip
    body = [
        [
            row.benchmark,
            row.case,
            row.shape,
            f"{time(row.p50)}/{row.unit}",
            f"{time(row.p20)}-{time(row.p80)}",
            "" if row.cpu is None else time(row.cpu),
            _number(row.times_baseline, "{:.2f}x"),
            _number(row.flops_per_second, "{:.0f}", 1e-9),
            _number(row.bytes_per_second, "{:.1f}", 1e-9),
            _number(row.of_ceiling, "{:.0%}"),
            _number(row.of_floor, "{:.0%}"),
            _number(row.peak_extra_bytes, "{:.0f}", 1e-6),
            _number(row.error, "{:.1e}"),
            _number(row.plain_error, "{:.1e}"),
        ]
        for row in rows
    ]
    return markdown(head, body)


def markdown(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def time(seconds: float) -> str:
    """Seconds as three significant digits and a unit."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)
