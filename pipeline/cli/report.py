"""The report command: results as one page, tables for spreadsheets, event files."""

import logging
import time
from pathlib import Path

import click

from pipeline.cli.command import PATH, Command, option
from pipeline.cli.console import show
from pipeline.errors import ConfigError

LOG = logging.getLogger(__name__)
SOON, SHARE = 5.0, 10  # seconds between two pages of --watch, or so many times what one takes


@click.command(cls=Command)
@click.argument(
    "paths", nargs=-1, required=True, metavar="RUN|SWEEP|FOLDER|BENCH...", type=PATH,
    help="Runs, sweeps, folders that hold them, and files of benchmark results.",
)  # fmt: skip
@option(
    "--out", type=PATH, note="report.html in the folder, beside the file, or here for several",
    help="HTML page to write.",
)  # fmt: skip
@option("--cache", type=PATH, note="where it was", help="Cache file of a run, if it was moved.")
@option(
    "--images-per-second", type=click.FloatRange(min=0, min_open=True),
    note="as measured by extract",
    help="Encoding rate, to estimate the time that a run would take without a cache.",
)  # fmt: skip
@option(
    "--watch", is_flag=True,
    help="Write the page again every few seconds until all runs are finished (of a sweep: until "
    "Ctrl-C); it reloads itself meanwhile.",
)  # fmt: skip
@option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="Also write CSV tables beside the page; results.csv grows.",
)
@option(
    "--tensorboard", metavar="DIR", type=PATH, help="Also write TensorBoard event files to DIR."
)
@option(
    "--figures", metavar="DIR", type=PATH,
    help="Also write figures for a paper to DIR, as PDF, SVG and PNG, one and two columns wide.",
)  # fmt: skip
def report(
    paths: tuple[Path, ...],
    out: Path | None,
    cache: Path | None,
    images_per_second: float | None,
    watch: bool,
    as_csv: bool,
    tensorboard: Path | None,
    figures: Path | None,
) -> None:
    """Show runs, sweeps and benchmarks in one self-contained HTML page and print its path.

    Several are listed first, with their curves, and folded; of very many the page is the list.

    \b
        ./run.sh report runs/0a1b2c3d4e5f
        ./run.sh report runs/one runs/two --out compared.html
        ./run.sh report runs
        ./run.sh report runs/0a1b2c3d4e5f --watch
        ./run.sh report benchmarks/results/*.jsonl
    """
    from pipeline.json_files import replace_file
    from pipeline.reports.bench import BenchData
    from pipeline.reports.data import RunData
    from pipeline.reports.listing import expanded, read_listed
    from pipeline.reports.page import MOST, NAME, index_html, read, report_html

    if cache is not None and not cache.exists():
        raise ConfigError(f"--cache {cache}: no such file")
    page = out or _beside(paths, NAME)
    if watch:
        _watch(paths, page, cache, images_per_second)
    found = expanded(paths)
    data, lost = [], []
    only_listed = len(found) > MOST and not (as_csv or tensorboard or figures)
    for path, named in [] if only_listed else found:
        try:
            data.append(read(path))
        except ConfigError:
            if named:
                raise
            lost.append(read_listed(path))
    written = []
    if len(found) > MOST:
        LOG.info("%d results: the page lists them, and links to report.html of each", len(found))
        title = f"{len(found)} runs and sweeps"
        html = index_html([read_listed(path) for path, _ in found], page.parent, title)
    else:
        html = report_html(data, cache=cache, images_per_second=images_per_second, lost=lost)
    if as_csv:
        from pipeline.reports.csv_tables import write_csv
        from pipeline.reports.results_file import NAME as RESULTS
        from pipeline.reports.results_file import grow

        results = [one for one in data if not isinstance(one, BenchData)]
        written += [grow(page.with_name(RESULTS), results)] if results else []
        written += [file for one in data for file in write_csv(one, _folder(one, page, len(data)))]
    if tensorboard is not None:
        from pipeline.reports.tensorboard_events import write_events

        written += [write_events(one, tensorboard) for one in data if isinstance(one, RunData)]
    if figures is not None:
        from pipeline.reports.figure_data import collect
        from pipeline.reports.figures import write_figures

        pictures, notes = collect(data, [path for path, _ in found if path.is_dir()])
        for note in notes:
            LOG.warning("%s", note)
        written += write_figures(pictures, figures)
    for file in [*written, replace_file(page, html)]:
        show(file)


def _watch(paths: tuple[Path, ...], page: Path, cache: Path | None, rate: float | None) -> None:
    """Writes the page again and again until every run of it is finished, or a signal comes."""
    from pipeline.json_files import replace_file
    from pipeline.reports.data import RunData
    from pipeline.reports.listing import expanded
    from pipeline.reports.page import read, report_html
    from pipeline.signals import noted_signals

    wait = 0.0
    with noted_signals() as stop:
        while not stop:
            started = time.monotonic()
            data = [read(path) for path, _ in expanded(paths)]
            if all(isinstance(one, RunData) and one.finished for one in data):
                return
            seconds = max(SOON, wait)
            html = report_html(
                data, cache=cache, images_per_second=rate, reload=max(1, round(seconds))
            )
            replace_file(page, html)
            if not wait:
                LOG.info("%s is written again every %.0f s; Ctrl-C stops", page, seconds)
            wait = SHARE * (time.monotonic() - started)
            while not stop and time.monotonic() < started + seconds:
                time.sleep(0.1)


def _beside(paths: tuple[Path, ...], name: str) -> Path:
    if len(paths) > 1:
        return Path(name)
    return paths[0] / name if paths[0].is_dir() else paths[0].with_suffix(".html")


def _folder(one, page: Path, many: int) -> Path:
    """Where tables go: next to the page, or, for several, next to their own data."""
    return page.parent if many == 1 else getattr(one, "folder", page.parent)
