"""report.html: results of runs, sweeps and benchmarks, in one self-contained file."""

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import ConfigError
from pipeline.extraction.rate import Rate, read_rate
from pipeline.json_files import replace_file
from pipeline.reports.bench import BenchData, bench_part, read_bench
from pipeline.reports.data import RunData, read_run
from pipeline.reports.listing import Listed, listed_run, listed_sweep
from pipeline.reports.maps import answers_of
from pipeline.reports.render import page, render
from pipeline.reports.run import run_part
from pipeline.reports.runs import SCRIPT, runs_part
from pipeline.reports.sweep import sweep_part
from pipeline.reports.trials import SweepData, read_sweep
from pipeline.runs.outcomes import Tested

NAME, INDEX = "report.html", "index.html"
FOLDED = 3  # results of a page; where there are more, each is folded
MOST = 24  # results whose parts are in one page; of more the page is their list alone
Data = RunData | SweepData | BenchData


def write_report(
    folder: str | PathLike[str],
    *,
    cache: str | PathLike[str] | None = None,
    images_per_second: float | None = None,
    answers: Mapping[int, Tested] | None = None,
) -> Path:
    """Writes <folder>/report.html of one run or sweep, finished or not, and returns its path.

    cache              the run's features, if not where its summary.json says
    images_per_second  encoding rate; None: as extract measured it, if it did
    answers            of the run on its test rows, by fold; None: its adapters are asked

    Raises ConfigError, in one line, for a folder that is neither or cannot be written.
    """
    html = report_html(
        [read(folder)], cache=cache, images_per_second=images_per_second, answers=answers
    )
    return replace_file(Path(folder, NAME), html)


def index_html(rows: Sequence[Listed], where: Path, title: str) -> bytes:
    """A page that lists runs and sweeps, with links to the pages in their folders, as UTF-8.

    where  the folder in which the page will lie
    """
    links = {
        row.folder: "./" + quote(Path(os.path.relpath(row.folder / NAME, where)).as_posix())
        for row in rows
        if (row.folder / NAME).is_file()
    }
    return page(title, [], [runs_part(rows, links)], ("page.js", SCRIPT))


def read(path: str | PathLike[str]) -> Data:
    """The data of a run folder, a sweep folder or a benchmark's .jsonl, recognised by its files.

    Raises ConfigError for what is none of them.
    """
    path = Path(path)
    try:
        return _read(path)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or path}: cannot be read ({error.strerror or error})"
        ) from error


def _read(path: Path) -> Data:
    if (path / "trials.jsonl").exists():
        return read_sweep(path)
    if (path / "config.json").exists():
        return read_run(path)
    if path.is_file() and path.suffix == ".jsonl":
        return read_bench(path)
    found = "no such path" if not path.exists() else "it has none of these files"
    raise ConfigError(
        f"{path}: {found}; report takes a run folder (config.json), a sweep folder (trials.jsonl) "
        "or a result of bench (.jsonl)"
    )


def report_html(
    data: Sequence[Data],
    *,
    cache: str | PathLike[str] | None = None,
    images_per_second: float | None = None,
    answers: Mapping[int, Tested] | None = None,
    lost: Sequence[Listed] = (),
    reload: int | None = None,
) -> bytes:
    """The page of all that was read, in its order, as UTF-8; several runs are compared first.

    lost    lines on folders that could not be read
    reload  seconds after which a browser loads the page again
    """
    cache = None if cache is None else Path(cache)
    links = [(f"part-{at}", f"{one.kind} {one.label.name or one.name}")
             for at, one in enumerate(data)]  # fmt: skip
    listed = {one.folder: listed_run(one) if isinstance(one, RunData) else listed_sweep(one)
              for one in data if not isinstance(one, BenchData)}  # fmt: skip
    parts = []
    if len(listed) + len(lost) > 1:
        anchors = {one.folder: f"#{anchor}" for (anchor, _), one in zip(links, data, strict=True)
                   if not isinstance(one, BenchData)}  # fmt: skip
        parts.append(runs_part([*listed.values(), *lost], anchors))
    for (anchor, name), one in zip(links, data, strict=True):
        if isinstance(one, RunData):
            rate = images_per_second or _measured(one, cache)
            part = run_part(one, anchor, answers_of(one, cache, answers), rate)
        elif isinstance(one, SweepData):
            part = sweep_part(one, anchor)
        else:
            part = bench_part(one, anchor)
        if len(data) > FOLDED:
            says_which = one.label.name or isinstance(one, BenchData)
            title = one.title if says_which else f"{name}: {one.title}"
            part = render("folded.html", title=title, part=part)
        parts.append(part)
    title = data[0].title if len(data) == 1 else f"{len(data)} results side by side"
    scripts = ("page.js", SCRIPT) if len(listed) + len(lost) > 1 else ("page.js",)
    return page(title, links, parts, scripts, reload)


def _measured(run: RunData, cache: Path | None) -> Rate | None:
    file = cache or run.cache_file
    return read_rate(file, str(run.cache.get("content_sha256"))) if file else None
