"""Plain records -> figures for papers as PDF, SVG and PNG; the only importer of matplotlib."""

import io
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import ConfigError
from pipeline.json_files import replace_file
from pipeline.reports.charts.heat import Grid, extremes
from pipeline.reports.charts.svg import short
from pipeline.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)
WIDTHS = {"one-column": 3.3, "two-columns": 6.9}
"""Inches, as most proceedings set them."""
FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None},
}  # fmt: skip
"""Each with metadata that leaves out the time and the version: the same data, the same bytes."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, the yellow left out: it is too light for lines on white paper."""
LOOKS = tuple(zip(COLOURS, ("-", "--", "-.", ":", "-", "--", "-."), "osD^vPX", strict=True))
"""Colour, dashes and marker of the n-th series: in grey the latter two tell it."""
STYLE: dict[str, Any] = {
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "fedclip", "savefig.dpi": 300,
    "font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "lines.linewidth": 1.2,
    "lines.markersize": 3.5, "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False, "text.usetex": False, "axes.unicode_minus": True,
    "legend.frameon": False, "errorbar.capsize": 2, "image.cmap": "cividis",
}  # fmt: skip
LETTERS = 22  # of a name
NUMBERED = 6  # columns of a map whose cells have room for their values


Picture = Callable[[float], "Figure"]
"""One of the functions below that lacks its width only, in inches."""


class Band(NamedTuple):
    """A line by round: mean and standard deviation (None for one seed) over seeds, fractions."""

    name: str
    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float | None, ...]


class Bar(NamedTuple):
    """Mean and standard deviation (None for one seed) over seeds, fractions."""

    name: str
    mean: float
    std: float | None


def write_figures(pictures: Mapping[str, Picture], folder: str | PathLike[str]) -> list[Path]:
    """Writes <folder>/<name>-<width>.pdf, .svg and .png of each picture, and returns their paths.

    Raises ConfigError where matplotlib is missing or a file cannot be written.
    """
    try:
        from matplotlib import rc_context
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--figures needs the package matplotlib ({error.name} is not installed); "
            "pip install -r requirements-figures.txt"
        ) from error
    written, folder = [], Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be created ({error.strerror or error})") from error
    with rc_context(), warnings.catch_warnings(record=True) as said:
        _use_style()
        warnings.simplefilter("always")
        for name, draw in pictures.items():
            for width, inches in WIDTHS.items():
                figure = draw(inches)
                for kind, metadata in FORMATS.items():
                    content = io.BytesIO()
                    figure.savefig(content, format=kind, metadata=metadata)
                    file = folder / f"{_plain(name)}-{width}.{kind}"
                    written.append(replace_file(file, content.getvalue()))
    for line in dict.fromkeys(str(one.message) for one in said):
        LOG.warning("figures: %s", printable(line))
    return written


def rounds(width: float, bands: Sequence[Band], what: str) -> "Figure":
    """Lines by round; a band is one standard deviation over seeds to both sides."""
    figure, axes = _axes(width, 0.68 * min(width, 4.6))
    for band, (colour, dashes, marker) in zip(bands, LOOKS, strict=False):
        mean = [100 * value for value in band.mean]
        few = len(mean) < 2
        axes.plot(band.rounds, mean, color=colour, linestyle=dashes, label=_name(band.name),
                  marker=marker, markevery=max(1, len(mean) // 6),
                  linewidth=0 if few else None)  # fmt: skip
        if all(std is not None for std in band.std):
            low, high = ([m + sign * 100 * (s or 0.0) for m, s in zip(mean, band.std, strict=True)]
                         for sign in (-1, 1))  # fmt: skip
            axes.fill_between(band.rounds, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("Round")
    axes.set_ylabel(what.replace(", ", ",\n"))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(bands) > 1:
        _legend(figure, width)
    return figure


def bars(width: float, rows: Sequence[Bar], zero_shot: float | None, what: str) -> "Figure":
    """Bars with one standard deviation over seeds, from 0; zero-shot as a dashed line."""
    figure, axes = _axes(width, 0.75 + 0.2 * len(rows))
    places = range(len(rows))
    axes.barh(places, [100 * r.mean for r in rows], height=0.62, color=COLOURS[0], alpha=0.85,
              xerr=[100 * (r.std or 0.0) for r in rows],
              error_kw={"elinewidth": 0.9, "capsize": 2})  # fmt: skip
    ends = [100 * (row.mean + (row.std or 0.0)) for row in rows]
    for at, (row, end) in enumerate(zip(rows, ends, strict=True)):
        std = "" if row.std is None else f" \u00b1 {100 * row.std:.1f}"
        axes.annotate(f"{100 * row.mean:.1f}{std}", (end, at), xytext=(4, 0), fontsize=7,
                      textcoords="offset points", va="center")  # fmt: skip
    axes.set_yticks(places, [_name(row.name) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    room = 1.38 if width < 5 else 1.16
    axes.set_xlim(0, max(*ends, 1.0, 100 * (zero_shot or 0.0)) * room)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 100])
    axes.set_xlabel(what)
    if zero_shot is not None:
        axes.axvline(100 * zero_shot, color="black", linestyle="--", linewidth=0.9,
                     label=f"zero-shot CLIP, {100 * zero_shot:.1f}")  # fmt: skip
        _legend(figure, width)
    return figure


def clients(width: float, groups: Mapping[str, Sequence[float]]) -> "Figure":
    """Every client as a dot over a box of the quartiles; whiskers to the extremes.

    groups  accuracies of the clients of each configuration, fractions
    """
    figure, axes = _axes(width, 0.75 + 0.26 * len(groups))
    places = list(range(len(groups)))
    percents = [[100 * value for value in values] for values in groups.values()]
    axes.boxplot(percents, positions=places, orientation="horizontal", widths=0.55, whis=(0, 100),
                 showfliers=False, medianprops={"color": "black", "linewidth": 1.4},
                 boxprops={"linewidth": 0.7}, whiskerprops={"linewidth": 0.7},
                 capprops={"linewidth": 0.7})  # fmt: skip
    for at, values in zip(places, percents, strict=True):
        shift = [at + 0.16 * ((7 * k) % 5 - 2) / 2 for k in range(len(values))]
        axes.plot(values, shift, "o", color=COLOURS[0], markersize=2.6, alpha=0.55, linewidth=0)
    axes.set_yticks(places, [_name(name) for name in groups])
    axes.invert_yaxis()
    axes.set_xlabel("Test accuracy of a client (%)")
    return figure


def sent(
    width: float, points: Sequence[tuple[float, Bar]], zero_shot: float | None, what: str
) -> "Figure":
    """Accuracy against the bytes of a whole training, with one standard deviation over seeds."""
    figure, axes = _axes(width, 0.68 * min(width, 4.6))
    for at, (bytes, point) in enumerate(points):
        colour, _, marker = LOOKS[at % len(LOOKS)]
        hollow = "white" if (at // len(LOOKS)) % 2 else colour
        axes.errorbar(bytes / 1e6, 100 * point.mean, yerr=100 * (point.std or 0.0),
                      color=colour, marker=marker, markersize=5, markerfacecolor=hollow,
                      linewidth=0, elinewidth=0.9, label=_name(point.name))  # fmt: skip
    if zero_shot is not None:
        axes.axhline(100 * zero_shot, color="black", linestyle="--", linewidth=0.9,
                     label="zero-shot CLIP")  # fmt: skip
    sizes = [bytes for bytes, _ in points]
    if max(sizes) > 5 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("Sent by and to all clients, all rounds (MB)")
    axes.set_ylabel(what.replace(", ", ",\n"))
    _legend(figure, width)
    return figure


def maps(width: float, grids: Sequence[Grid], what: str) -> "Figure":
    """A heat map for each grid, on one scale; what was chosen is in a frame."""
    from matplotlib.patches import Rectangle

    wide = width > 5
    down, across = (1, len(grids)) if wide else (len(grids), 1)
    figure = _figure(width, (2.4 if wide else 1.9 * len(grids) + 0.3))
    low, high = extremes([row for grid in grids for row in grid.values])
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for one, grid in zip(axes, grids, strict=True):
        values = [[float("nan") if v is None else 100 * v for v in row] for row in grid.values]
        image = one.imshow(values, aspect="auto", origin="lower", vmin=100 * low, vmax=100 * high)
        for axis, names, size in ((one.xaxis, grid.x, 5), (one.yaxis, grid.y, 10)):
            every = max(1, -(-len(names) // size))
            at = range(0, len(names), every)
            axis.set_ticks(at, [_name(names[n]) for n in at])
        one.set_xlabel(_name(grid.x_name) + (f" ({grid.name})" if grid.name else ""))
        one.set_ylabel(_name(grid.y_name))
        if len(grids) == 1 and len(grid.x) <= NUMBERED and len(grid.y) <= 2 * NUMBERED:
            _write_cells(one, values, image)
        if grid.marked:
            y, x = grid.marked
            for colour, wide in (("white", 3.4), ("#D55E00", 1.6)):
                one.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=colour,
                                        linewidth=wide, clip_on=False, zorder=3))  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(what)
    bar.outline.set_visible(False)
    return figure


def _write_cells(axes: "Axes", values: Sequence[Sequence[float]], image: Any) -> None:
    """Each value in its cell, dark on light and light on dark: shades alone are read roughly."""
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if not math.isnan(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
                axes.annotate(f"{value:.1f}", (x, y), fontsize=6, ha="center", va="center",
                              color="black" if light else "white")  # fmt: skip


def _use_style() -> None:
    import matplotlib

    matplotlib.rcdefaults()  # nobody's matplotlibrc changes a figure
    matplotlib.rcParams.update(STYLE)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(width: float, height: float) -> "tuple[Figure, Axes]":
    figure = _figure(width, height)
    return figure, figure.subplots()


def _legend(figure: "Figure", width: float) -> None:
    """Above the plot, so that it covers nothing."""
    count = len(figure.axes[0].get_legend_handles_labels()[0])
    figure.legend(loc="outside upper center", ncols=min(count, 2 if width < 5 else 4),
                  handlelength=2.2, columnspacing=1.2)  # fmt: skip


def _name(name: str) -> str:
    return short(printable(name), LETTERS)


def _plain(name: str) -> str:
    """A name as one part of a path."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:100] or "_"
