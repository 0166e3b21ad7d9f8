"""Small tables that lack rows of some kind, and what must hold of whatever runs on them."""

import csv
import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from cache.store import read_table, write_table
from cache.table import FeatureTable
from pipeline.cli.options import choose_held_out
from pipeline.errors import ConfigError
from pipeline.reports.csv_tables import write_csv
from pipeline.reports.data import read_run
from pipeline.reports.maps import answers_of
from pipeline.reports.run import run_part
from pipeline.runs.federate import federate
from pipeline.runs.results import table as text_table
from pipeline.settings import RunConfig
from tests.runs.small_runs import small

MISSING = {
    "nothing": lambda use, label, domain: use < 0,
    "train": lambda use, label, domain: use == 0,
    "val": lambda use, label, domain: use == 1,
    "test": lambda use, label, domain: use == 2,
    "all but test": lambda use, label, domain: use < 2,
    "all but train": lambda use, label, domain: use > 0,
    "a class": lambda use, label, domain: label == 2,
    "a class's train": lambda use, label, domain: (label == 2) & (use == 0),
    "all but a class": lambda use, label, domain: label > 0,
    "a domain": lambda use, label, domain: domain == 1,
    "a domain's train": lambda use, label, domain: (domain == 1) & (use == 0),
    "a domain's val": lambda use, label, domain: (domain == 1) & (use == 1),
    "a domain's test": lambda use, label, domain: (domain == 1) & (use == 2),
    "all but a domain": lambda use, label, domain: domain > 0,
    "all but a row": lambda use, label, domain: np.arange(len(use)) > 0,
}
"""Which rows a table lacks, by use, label and domain (N,); names of classes and domains stay."""

_PAIR = r"--[a-z][a-z-]* (?:'[^']*'|[\w.,-]*\w)"
_OPTIONS = re.compile(f"{_PAIR}(?: {_PAIR})*")


def lacking(missing: str, *, fixed: bool = True, rows=(48, 24, 24), width: int = 3) -> FeatureTable:
    """Three domains of three classes; of each domain half train, a quarter validate and test."""
    table = small(rows=rows, width=width, classes=3)
    place = np.concatenate([np.arange(n) for n in rows])
    use = np.array([0, 0, 1, 2], np.int8)[place // 3 % 4]
    kept = ~MISSING[missing](use, table.labels, table.domains)
    return dataclasses.replace(
        table,
        features=table.features[kept],
        labels=table.labels[kept],
        domains=table.domains[kept],
        split=use[kept] if fixed else None,
    )


def stored(table: FeatureTable, file: Path) -> FeatureTable:
    """The table as a cache gives it back."""
    file.unlink(missing_ok=True)
    write_table(file, table)
    return read_table(file)


def run_and_report(
    table: FeatureTable, config: RunConfig, out: Path, *, page: bool = True
) -> dict[str, Any]:
    """federate's document; its text, JSON, page and CSV hold no NaN, and no accuracy of no rows."""
    file = Path(table.source)
    document = federate(table, config, runs=out, out=out, device="cpu", file=file, force=True)
    json.dumps(document, allow_nan=False)
    assert "nan" not in text_table(document)
    for result in document["results"]:
        check_result(table, result)
    if not page:
        return document
    run = read_run(out)
    html = str(run_part(run, "run", answers_of(run)))
    # "none" is what holding nothing out is called; Python's None would begin with a capital.
    assert not re.search(r"\b((?i:nan|inf)|None)\b", html), html
    for written in write_csv(run, out):
        with written.open(encoding="utf-8", newline="") as opened:
            cells = {cell for row in csv.reader(opened) for cell in row}
        assert not {cell.lower() for cell in cells} & {"nan", "inf"} and "None" not in cells
    return document


def check_result(table: FeatureTable, result: dict[str, Any]) -> None:
    """What no row measures is None or absent, and what a row measures is a fraction."""
    for side in (result, result["zero_shot"]):
        domains = side["per_domain"]
        assert set(domains) <= {table.domain_names[d] for d in np.unique(table.domains)}
        assert all(0 <= value <= 1 for value in domains.values())
        assert (side["overall"] is None) == (not domains) == (side["macro_f1"] is None)
        assert (side["calibration_error"] is None) == (not domains)
        clients = side["clients"]
        assert (clients["mean"] is None) == (clients["worst"] is None) == (not clients["accuracy"])
    held_out = set((result["held_out"] or "").split(","))
    assert (result["unseen"] is None) == (not held_out & set(result["per_domain"]))
    assert (result["participants"] is None) == (not set(result["per_domain"]) - held_out)
    if result["gate"] and not result["gate"]["tested"]:
        assert result["gate"] == {"distance": None, "changed": 0, "tested": 0}
    for told in [result["personalised"][n] for n in ("before", "after") if result["personalised"]]:
        assert (told["mean"] is None) == (not told["accuracy"])


def advised(message: str) -> list[list[str]]:
    """Each alternative that a message names, as words of a command line."""
    return [shlex.split(found) for found in _OPTIONS.findall(message)]


def with_options(table: FeatureTable | None, config: RunConfig, words: list[str]) -> RunConfig:
    """The config of the same command with some options more."""
    changes: dict[str, Any] = {}
    held_out: list[str] = []
    kinds = {field.name: field.type for field in dataclasses.fields(RunConfig)}
    for option, value in zip(words[::2], words[1::2], strict=True):
        name = option.removeprefix("--").replace("-", "_")
        if name == "held_out":
            held_out.append(value)
        else:
            assert callable(kinds[name]), f"{option} is no option of a run"
            changes[name] = kinds[name](value)
    if held_out:
        changes["held_out"] = choose_held_out(table, held_out, ())
    return dataclasses.replace(config, **changes)


def refusal(table: FeatureTable, config: RunConfig, out: Path, page: bool = True) -> str | None:
    """None where the run works, with all that run_and_report asks of it; else the one line."""
    try:
        run_and_report(table, config, out, page=page)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return str(error)
    return None
