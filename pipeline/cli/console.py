"""What several commands share: where things lie, talking to people, finding or making a cache."""

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
LARGE = 50_000_000  # bytes of a cache that take long enough to be asked about
PROMPT = "a picture of a {}"


def show(*lines: object) -> None:
    """Results, a line each, to stdout."""
    for line in lines:
        click.echo(printable(line))


def show_table(text: str) -> None:
    """Results whose lines are our own and whose names were made printable in their places."""
    show(*text.split("\n"))


def default_model(dataset: str, model: str | None) -> str:
    """The model that was named; else the demo's own, or ViT-B/32."""
    return model or ("demo" if dataset == "demo" else "ViT-B/32")


def run_extract(dataset: str, model: str | None, prompts: tuple[str, ...], **settings):
    """Stage one; returns its report."""
    with uncollected():
        from pipeline.extraction.extract import extract as run

    model = default_model(dataset, model)
    return run(dataset, model=model, templates=prompts, **settings)


def find_cache(job: Job) -> tuple[tuple[str, ...], Path]:
    """The words of a command line that name a cache, and its file; extracted when missing.

    Raises ConfigError when both a file and a data set are named.
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
    LOG.info("there is no cache %s yet: extracting it first", cache_path(dataset, model))
    from pipeline.errors import Doubtful

    try:
        report = run_extract(
            dataset, model, (PROMPT,), towers=job.towers, root=job.root, device=job.device
        )
    except Doubtful as error:  # the command at hand has no such options
        place = f" --root {shlex.quote(str(job.root))}" if job.root else ""
        command = shlex.join(["./run.sh", "extract", "--dataset", dataset, *words[2:]])
        raise Doubtful(
            f"{error}. Extract it first, with these options: {command}{place} {error.words}",
            error.words,
        ) from error
    return words, report.path


def load_table(file: Path) -> "FeatureTable":
    """The table of a cache; of a large one a line says that it is being read."""
    from cache.store import read_table

    with contextlib.suppress(OSError):
        if (size := file.stat().st_size) > LARGE:
            LOG.info("loading %s, %.0f MB", file, size / 1e6)
    return read_table(file)


def show_comparison(folder: Path) -> None:
    """The table of a sweep's configurations, where several finished that differ in one setting and
    have several seeds; all are shown, and it selects nothing."""
    from pipeline.reports.table_formats import FORMATS
    from pipeline.reports.tables import build_table

    try:
        table = build_table([folder])
    except ConfigError:  # nothing finished: the report says so
        return
    rows = [row for row in table.rows if row.settings]
    if len(rows) > 1 and len(table.by) == 1 and any(len(row.seeds) > 1 for row in rows):
        show_table("\n" + FORMATS["text"](table))


def grow_results(file: Path | None, folders: Iterable[Path], as_json: bool = False) -> None:
    """Adds what these runs and sweeps reached to the file of --csv, if one is named, and prints
    its path; to stderr where stdout is for one JSON object."""
    if file is None:
        return
    from pipeline.reports.page import read
    from pipeline.reports.results_file import grow
    from pipeline.reports.trials import BenchData

    grown = grow(file, [one for one in map(read, folders) if not isinstance(one, BenchData)])
    if as_json:
        LOG.info("%s", grown)
    else:
        show(grown)


def show_report(
    folder: Path, cache: Path, as_json: bool, answers: "Mapping[int, Tested] | None" = None
) -> None:
    """Writes a run's or sweep's report.html and prints its path, the last line.

    as_json  stdout is for one JSON object: the path goes to stderr
    answers  of a run that was just trained, by fold
    """
    from pipeline.reports.page import write_report

    try:
        page = write_report(folder, cache=cache, answers=answers)
    except ConfigError as error:  # the results stand; only the page is missing
        LOG.warning("the report could not be written: %s", error)
        return
    if as_json:
        LOG.info("%s", page)
    else:
        show(page)
