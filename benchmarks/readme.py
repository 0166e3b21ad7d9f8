"""The documentation's speed tables, generated only from the newest result files."""

from pathlib import Path

from benchmarks.rows import RESULTS, Row, markdown, read, time
from kernels.backends import BF16

ROOT = RESULTS.parent.parent
BEGIN = "<!-- made by ./run.sh bench --readme: begin -->"
END = "<!-- made by ./run.sh bench --readme: end -->"
WORDS = {
    "product": "one matrix product",
    "local-step": "one training step",
    "lane-step": "one training step",
    "top1": "answering one row",
    "contrastive": "contrastive loss and gradients",
    "round": "the blog's four commands",
    "compile": "compiling",
    "trials": "a trial of a sweep",
    "peers": "one training step beside its peers",
    "contrastive-by-n": "contrastive loss and gradients by number",
    "sums": "sums of features",
    "heads": "a grid of closed-form heads",
    "extract": "extraction",
}
DEVICES = ("CPU", "GPU")


CHIEF = ("round", "lane-step", "top1", "contrastive")  # shown in README.md
OURS = ("numba", "triton")


def rewrite(root: Path = ROOT, results: Path = RESULTS) -> None:
    """Write the chief rows to README.md and all rows to docs/kernels.md, between the markers.

    Raises ValueError for a page without the markers.
    """
    for page, made in ((root / "README.md", chief), (root / "docs" / "kernels.md", tables)):
        text = page.read_text("utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            raise ValueError(f"{page}: needs one line {BEGIN!r} and one {END!r}")
        before, rest = text.split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{made(results)}\n{END}{rest.split(END)[1]}", "utf-8")


def chief(results: Path = RESULTS) -> str:
    """One line per workload in CHIEF: plain torch and ours; for the CPU and the GPU."""
    return "\n\n".join(_chief(device, _newest(device, results)) for device in DEVICES)


def tables(results: Path = RESULTS) -> str:
    """A table for the CPU and one for the GPU, each from the newest file, or "not measured"."""
    return "\n\n".join(_table(device, _newest(device, results)) for device in DEVICES)


def _newest(device: str, results: Path) -> Path | None:
    files = [
        file for file in results.glob("*.jsonl") if bool(read(file)[0]["gpu"]) == (device == "GPU")
    ]
    return max(files, key=lambda file: (read(file)[0]["date"], file.name), default=None)


def _table(device: str, file: Path | None) -> str:
    if file is None:
        return f"{device}: not measured."
    machine, rows = read(file)
    head = ["work", "done by", "time", "times faster", "of the machine's best", "extra memory"]
    head += ["of the floor"] * any(row.of_floor for row in rows)
    # Our plain backend is not of interest here.
    lines = [_line(row)[: len(head)] for row in rows if row.case != "torch"]
    link = f"[result file](../benchmarks/results/{file.name})"
    return f"{_heading(device, machine)} ({link}).\n\n{markdown(head, lines)}"


def _chief(device: str, file: Path | None) -> str:
    if file is None:
        return f"{device}: not measured."
    machine, rows = read(file)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.benchmark in CHIEF:
            groups.setdefault((row.benchmark, row.shape), []).append(row)
    lines = []
    for benchmark, shape in sorted(groups, key=lambda each: CHIEF.index(each[0])):
        group = groups[benchmark, shape]
        plain = next((row for row in group if row.times_baseline == 1.0), None)
        ours = next((row for row in group if any(name in row.case for name in OURS)), None)
        if plain and ours:
            faster = f"{ours.times_baseline:.2f}"
            lines.append([f"{WORDS[benchmark]}, {shape}", time(plain.p50), time(ours.p50), faster])
    said = f"{_heading(device, machine)}.\n\n" + markdown(
        ["work", "plain torch", "here", "times faster"], lines
    )
    return said + _beside_peers([row for row in rows if row.benchmark == "peers"])


def _beside_peers(rows: list[Row]) -> str:
    """A sentence: floor, ours and best peer for a training step on one core; "" if not measured."""
    ours = next((row for row in rows if row.case in OURS), None)
    others = [row for row in rows if row.case not in (*OURS, BF16) and row.cpu]
    if ours is None or not (ours.cpu and ours.floor and others):
        return ""
    best = min(others, key=lambda row: row.cpu or 0.0)
    return (
        f"\n\nOne training step on one core: floor {time(ours.floor)} (what that core reached in "
        f"products, square roots and memory in the same run), here {time(ours.cpu)} "
        f"({ours.floor / ours.cpu:.0%} of the floor), the best peer {time(best.cpu or 0.0)} "
        f"({best.case}): {(best.cpu or 0.0) / ours.cpu:.2f} times ours."
    )


def _heading(device: str, machine: dict) -> str:
    name = (
        machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {machine['cores']} cores"
    )
    packages = ", ".join(
        f"{package} {machine['packages'][package]}"
        for package in ("torch", "numba", "triton")
        if machine["packages"].get(package)
    )
    return f"{device}: {name}; {packages}; load {machine['load']} when it began"


def _line(row: Row) -> list[str]:
    return [
        f"{WORDS[row.benchmark]}, {row.shape}",
        row.case,
        f"{time(row.p50)} ({time(row.p20)} to {time(row.p80)})",
        "" if row.times_baseline is None else f"{row.times_baseline:.2f}",
        "" if row.of_ceiling is None else f"{row.of_ceiling:.0%}",
        "" if row.peak_extra_bytes is None else f"{row.peak_extra_bytes / 1e6:.0f} MB",
        "" if row.of_floor is None else f"{row.of_floor:.0%}",
    ]
