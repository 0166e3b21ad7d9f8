"""Functions that commands share: printing, finding or extracting a cache, writing reports."""

import contextlib
import logging
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import Job
from pipeline.encoder.towers import UNNAMED, words_of
from pipeline.errors import ConfigError
from pipeline.imports import uncollected
from pipeline.terminal import printable

if TYPE_CHECKING:
    from cache.table import FeatureTable
    from pipeline.runs.outcomes import Tested

LOG = logging.getLogger(__name__)
LARGE = 50_000_000  # bytes of a cache that take noticeably long to load
PROMPT = "a picture of a {}"


def show(*lines: object) -> None:
    """Prints results to stdout, a line each."""
    for line in lines:
        click.echo(printable(line))


def show_table(text: str) -> None:
    """Prints text of several lines, in which names are already printable."""
    show(*text.split("\n"))


def default_model(dataset: str, model: str | None) -> str:
    """The given model; else the demo's own, or ViT-B/32."""
    return model or ("demo" if dataset == "demo" else "ViT-B/32")


def run_extract(dataset: str, model: str | None, prompts: tuple[str, ...], **settings):
    """Runs stage one and returns its report."""
    with uncollected():
        from pipeline.extraction.extract import extract as run

    model = default_model(dataset, model)
    return run(dataset, model=model, templates=prompts, **settings)


def find_cache(job: Job) -> tuple[tuple[str, ...], Path]:
    """The words of a command line that name a cache, and its file; extracts it if missing.

    Raises ConfigError if both a file and a data set are named.
    """
    if job.cache is not None:
        if job.dataset or job.model or job.towers != UNNAMED:
            raise ConfigError(
                f"both the cache {job.cache} and --dataset/--model (or --heads/--activation) were "
                "given; pass only one of the two"
            )
        return (str(job.cache),), job.cache
    from pipeline.extraction.cache_files import cache_path
    from pipeline.extraction.cache_files import find_cache as find

    words = tuple(
        word
        for option, value in (("--dataset", job.dataset), ("--model", job.model))
        if value
        for word in (option, value)
    ) + words_of(job.towers)
    dataset = job.dataset or "demo"
    model = default_model(dataset, job.model)
    found = find(dataset, model, job.towers)
    if found:
        LOG.info("using the cache %s", found)
        return words, found
    LOG.info("no cache %s yet: extracting it first", cache_path(dataset, model))
    from pipeline.errors import Doubtful

    try:
        report = run_extract(
            dataset, model, (PROMPT,), towers=job.towers, root=job.root, device=job.device
        )
    except Doubtful as error:  # this command does not have these options
        place = f" --root {shlex.quote(str(job.root))}" if job.root else ""
        command = shlex.join(["./run.sh", "extract", "--dataset", dataset, *words[2:]])
        raise Doubtful(
            f"{error}. Extract it first, with these options: {command}{place} {error.words}",
            error.words,
        ) from error
    return words, report.path


def load_table(file: Path) -> "FeatureTable":
    """Loads a cache's table; logs a line if it is large."""
    from cache.store import read_table

    with contextlib.suppress(OSError):
        if (size := file.stat().st_size) > LARGE:
            LOG.info("loading %s, %.0f MB", file, size / 1e6)
    return read_table(file)


def show_comparison(folder: Path) -> None:
    """Prints a table of a sweep's configurations if several with several seeds finished and differ
    in one setting. It shows all of them and selects nothing."""
    from pipeline.reports.table_formats import FORMATS
    from pipeline.reports.tables import build_table

    try:
        table = build_table([folder])
    except ConfigError:  # nothing finished, as the report says
        return
    rows = [row for row in table.rows if row.settings]
    if len(rows) > 1 and len(table.by) == 1 and any(len(row.seeds) > 1 for row in rows):
        show_table("\n" + FORMATS["text"](table))


def grow_results(file: Path | None, folders: Iterable[Path], as_json: bool = False) -> None:
    """Adds the results of runs and sweeps to the file of --csv, if given, and prints its path; to
    stderr if stdout is for a JSON object."""
    if file is None:
        return
    from pipeline.reports.bench import BenchData
    from pipeline.reports.page import read
    from pipeline.reports.results_file import grow

    grown = grow(file, [one for one in map(read, folders) if not isinstance(one, BenchData)])
    if as_json:
        LOG.info("%s", grown)
    else:
        show(grown)


def show_report(
    folder: Path, cache: Path, as_json: bool, answers: "Mapping[int, Tested] | None" = None
) -> None:
    """Writes a run's or sweep's report.html and prints its path, the last line.

    as_json  stdout is for a JSON object: the path goes to stderr
    answers  of a run that was just trained, by fold
    """
    from pipeline.reports.page import write_report

    try:
        page = write_report(folder, cache=cache, answers=answers)
    except ConfigError as error:  # the results are complete; only the page is missing
        LOG.warning("the report could not be written: %s", error)
        return
    if as_json:
        LOG.info("%s", page)
    else:
        show(page)
