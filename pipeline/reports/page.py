"""report.html: results of runs, sweeps and benchmarks, in one self-contained file."""

import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.extraction.rate import Rate, read_rate
from pipeline.json_files import replace_file
from pipeline.reports.bench import bench_part
from pipeline.reports.data import RunData, read_run
from pipeline.reports.maps import answers_of
from pipeline.reports.render import page
from pipeline.reports.run import run_part, title_of
from pipeline.reports.runs import runs_part
from pipeline.reports.sweep import sweep_part
from pipeline.reports.trials import BenchData, SweepData, read_bench, read_sweep
from pipeline.runs.outcomes import Tested

NAME = "report.html"
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
) -> bytes:
    """The page of all that was read, in its order, as UTF-8; several runs are compared first."""
    cache = None if cache is None else Path(cache)
    runs = [one for one in data if isinstance(one, RunData)]
    links = [(f"part-{at}", f"{_kind(one)} {one.name}") for at, one in enumerate(data)]
    parts = [runs_part(runs)] if len(runs) > 1 else []
    for (anchor, _), one in zip(links, data, strict=True):
        if isinstance(one, RunData):
            rate = images_per_second or _measured(one, cache)
            parts.append(run_part(one, anchor, answers_of(one, cache, answers), rate))
        elif isinstance(one, SweepData):
            parts.append(sweep_part(one, anchor))
        else:
            parts.append(bench_part(one, anchor))
    title = f"{len(data)} results side by side"
    if len(data) == 1:
        title = title_of(data[0]) if isinstance(data[0], RunData) else links[0][1]
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    foot = f"Written {written} by ./run.sh report, from the files of the results above alone."
    return page(title, links, parts, foot).encode("utf-8")


def _measured(run: RunData, cache: Path | None) -> Rate | None:
    file = cache or run.cache_file
    return read_rate(file, str(run.cache.get("content_sha256"))) if file else None


def _kind(one: Data) -> str:
    return {RunData: "Run", SweepData: "Sweep", BenchData: "Benchmark"}[type(one)]
