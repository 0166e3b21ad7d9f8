"""README.md's tables of speed, made from the newest result files and from nothing else."""

from pathlib import Path

from benchmarks.rows import RESULTS, Row, markdown, read, time

README = RESULTS.parent.parent / "README.md"
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
    "extract": "extraction",
}
DEVICES = ("CPU", "GPU")


def rewrite(readme: Path = README, results: Path = RESULTS) -> None:
    """Puts the tables between the two marks of README.md; raises ValueError without them."""
    text = readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme}: needs one line {BEGIN!r} and one {END!r}")
    before, rest = text.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{tables(results)}\n{END}{rest.split(END)[1]}", "utf-8")


def tables(results: Path = RESULTS) -> str:
    """A table for the CPU and one for the GPU, each from its newest file, or "not measured"."""
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
    name = (
        machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {machine['cores']} cores"
    )
    packages = ", ".join(
        f"{package} {machine['packages'][package]}"
        for package in ("torch", "numba", "triton")
        if machine["packages"].get(package)
    )
    head = ["work", "done by", "time", "times faster", "of the machine's best", "extra memory"]
    lines = [_line(row) for row in rows if row.case != "torch"]  # our plain code is no news
    return (
        f"{device}: {name}; {packages}; load {machine['load']} when it began "
        f"([all figures](benchmarks/results/{file.name})).\n\n{markdown(head, lines)}"
    )


def _line(row: Row) -> list[str]:
    return [
        f"{WORDS[row.benchmark]}, {row.shape}",
        row.case,
        f"{time(row.p50)} ({time(row.p20)} to {time(row.p80)})",
        "" if row.times_baseline is None else f"{row.times_baseline:.2f}",
        "" if row.of_ceiling is None else f"{row.of_ceiling:.0%}",
        "" if row.peak_extra_bytes is None else f"{row.peak_extra_bytes / 1e6:.0f} MB",
    ]
