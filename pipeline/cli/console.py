"""What several commands share: where things lie, talking to people, finding or making a cache."""

import shlex
from pathlib import Path

import click

from pipeline.encoder.towers import UNNAMED, Towers, words_of
from pipeline.errors import ConfigError
from pipeline.terminal import printable

PROMPT = "a picture of a {}"


def say(message: object) -> None:
    """Talk for people, one line: goes to stderr; stdout is for results."""
    click.echo(printable(message), err=True)


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
    from pipeline.extraction.extract import extract as run

    model = default_model(dataset, model)
    return run(dataset, model=model, templates=prompts, say=say, **settings)


def find_cache(
    file: Path | None,
    dataset: str | None,
    model: str | None,
    root: Path | None,
    device: str,
    towers: Towers = UNNAMED,
) -> tuple[tuple[str, ...], Path]:
    """The words of a command line that name a cache, and its file; extracted when missing.

    Raises ConfigError when both a file and a data set are named.
    """
    if file is not None:
        if dataset or model or towers != UNNAMED:
            raise ConfigError(
                f"both the cache {file} and --dataset/--model (or --heads/--activation) were "
                "named; name one of the two"
            )
        return (str(file),), file
    from pipeline.extraction.cache_files import cache_path
    from pipeline.extraction.cache_files import find_cache as find

    words = tuple(
        word
        for option, value in (("--dataset", dataset), ("--model", model))
        if value
        for word in (option, value)
    ) + words_of(towers)
    dataset = dataset or "demo"
    found = find(dataset, default_model(dataset, model), towers, say)
    if found:
        say(f"using the cache {found}")
        return words, found
    missing = cache_path(dataset, default_model(dataset, model))
    say(f"no cache {missing} yet: extracting it first")
    from pipeline.errors import Doubtful

    try:
        report = run_extract(dataset, model, (PROMPT,), towers=towers, root=root, device=device)
    except Doubtful as error:  # the command at hand has no such options
        place = f" --root {shlex.quote(str(root))}" if root else ""
        command = shlex.join(["./run.sh", "extract", "--dataset", dataset, *words[2:]])
        raise Doubtful(
            f"{error}. Extract it first, with these options: {command}{place} {error.words}",
            error.words,
        ) from error
    return words, report.path


def tell_report(folder: Path, cache: Path, quiet: bool) -> None:
    """Writes a run's or sweep's report.html and prints its path, the last line.

    quiet  stdout is for one JSON object: the path goes to stderr
    """
    from pipeline.reports.page import write_report

    try:
        (say if quiet else show)(write_report(folder, cache=cache))
    except ConfigError as error:  # the results stand; only the page is missing
        say(f"no report: {error}")
