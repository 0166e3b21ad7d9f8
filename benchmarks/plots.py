"""Plots of benchmark results: one for each benchmark of the command."""

from pathlib import Path

from benchmarks.rows import COMMANDS, Row


def plot_all(rows: list[Row], file: Path) -> list[Path]:
    """<file>-<word>.png for each benchmark of the command that has rows; returns the paths."""
    written = []
    for word, benchmarks in COMMANDS.items():
        own = [row for row in rows if row.benchmark in benchmarks]
        if own:
            written.append(file.with_name(f"{file.stem}-{word}.png"))
            plot(own, written[-1])
    return written


def plot(rows: list[Row], file: Path) -> None:
    """Bars of seconds per unit, one panel per benchmark and shape; whiskers from p20 to p80."""
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
        bars = axis.barh([r.case for r in group], [r.p50 for r in group], xerr=spread)
        ratios = [f" {r.times_baseline:.2f}x" if r.times_baseline else "" for r in group]
        axis.bar_label(bars, ratios, fontsize=8, label_type="center", color="white")
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
