"""What several commands share: where things lie, talking to people, finding or making a cache."""

import shlex
from pathlib import Path

import click

from pipeline.config import ConfigError

HOME = Path(__file__).resolve().parent.parent
PROMPT = "a picture of a {}"


def say(message: str) -> None:
    """Talk for people goes to stderr; stdout is for results."""
    click.echo(message, err=True)


def printable(value: object) -> str:
    """As text, with what could steer a terminal, or is no text, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def default_model(dataset: str, model: str | None) -> str:
    """The model that was named; else the demo's own, or ViT-B/32."""
    return model or ("demo" if dataset == "demo" else "ViT-B/32")


def run_extract(dataset: str, model: str | None, prompts: tuple[str, ...], **settings):
    """Stage one; returns its report."""
    from pipeline.extract import extract as run

    model = default_model(dataset, model)
    return run(dataset, model=model, templates=prompts, say=say, **settings)


def find_cache(
    file: Path | None, dataset: str | None, model: str | None, root: Path | None, device: str
) -> tuple[tuple[str, ...], Path]:
    """The words of a command line that name a cache, and its file; extracted when missing.

    Raises ConfigError when both a file and a data set are named.
    """
    if file is not None:
        if dataset or model:
            raise ConfigError(
                f"both the cache {file} and --dataset/--model were named; name one of the two"
            )
        return (str(file),), file
    from pipeline.cache_files import cache_path
    from pipeline.cache_files import find_cache as find

    words = tuple(
        word
        for option, value in (("--dataset", dataset), ("--model", model))
        if value
        for word in (option, value)
    )
    dataset = dataset or "demo"
    found = find(dataset, default_model(dataset, model))
    if found:
        say(f"using the cache {found}")
        return words, found
    missing = cache_path(dataset, default_model(dataset, model))
    say(f"no cache {missing} yet: extracting it first")
    from pipeline.doubts import Doubtful

    try:
        return words, run_extract(dataset, model, (PROMPT,), root=root, device=device).path
    except Doubtful as error:  # the command at hand has no such options
        place = f" --root {shlex.quote(str(root))}" if root else ""
        command = shlex.join(["./run.sh", "extract", "--dataset", dataset, *words[2:]])
        raise Doubtful(
            f"{error}. Extract it first, with these options: {command}{place} {error.words}",
            error.words,
        ) from error


def tell_report(folder: Path, cache: Path, quiet: bool) -> None:
    """Writes a run's or sweep's report.html and prints its path, the last line.

    quiet  stdout is for one JSON object: the path goes to stderr
    """
    from pipeline.report_page import write_report

    try:
        click.echo(write_report(folder, cache=cache), err=quiet)
    except ConfigError as error:  # the results stand; only the page is missing
        say(f"no report: {error}")
