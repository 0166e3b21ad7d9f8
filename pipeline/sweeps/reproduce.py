"""From images to the paper's table: counts, extraction, the blog's runs over seeds, comparison."""

import json
import logging
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from cache.store import read_table
from pipeline.datasets.counts import KNOWN
from pipeline.datasets.find import dataset_name, find_images
from pipeline.datasets.known import compare_counts
from pipeline.datasets.stated import Stated
from pipeline.digests import sealed
from pipeline.encoder.towers import UNNAMED, Towers
from pipeline.errors import ConfigError
from pipeline.extraction.extract import extract
from pipeline.json_files import replace_file
from pipeline.places import DATA
from pipeline.runs.federate import cache_facts
from pipeline.runs.results import released_figures
from pipeline.settings import RunConfig
from pipeline.sweeps.reproduced import NAME, compared
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from pipeline.sweeps.trials import read_trials

LOG = logging.getLogger(__name__)
BLOG = ("mode=FedAtImg",)
"""The blog's four commands as a sweep of one configuration; the rest are RunConfig's defaults."""


def reproduce(
    dataset: str | PathLike[str],
    *,
    runs: str | PathLike[str],
    root: str | PathLike[str] | None = None,
    model: str | PathLike[str] = "ViT-B/32",
    towers: Towers = UNNAMED,
    seeds: int = 3,
    rounds: int = RunConfig.rounds,
    cache: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    device: str = "auto",
    backend: str = "auto",
    workers: int | None = None,
    layout: str | None = None,
    class_names: str | None = None,
    accept: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Counts, extracts and trains every held-out domain with seeds 0, 1, ...; returns the table.

    The trainings are a sweep of the released settings over the seeds, in runs/sweep-<id> or `out`,
    where the returned object is saved as reproduced.json. Finished work is not repeated.

    dataset  a known name looked for in `root`, whose counts are compared with those published, or a
             folder
    towers   heads and activation of a file of weights, see encoder.towers
    cache    where the features go; None: where extract puts them
    layout, class_names, accept  as extract's
    rounds   200 in the paper's experiment

    Returns counts (lines that differ; None for data sets without published ones), lost (seeds whose
    training failed, which are left out of all means), rows by held-out
    domain and their mean: zero-shot and adapter accuracies as fractions, mean and sample standard
    deviation over seeds, the released figure and the difference of overall to it where there is
    one (RELEASED_PACS). Raises what extract and sweep raise; ConfigError when no seed succeeded.
    """
    dataset = fspath(dataset)
    name = dataset_name(dataset)
    stated = Stated(layout, class_names, tuple(accept))
    tree = find_images(dataset, Path(root or DATA), LOG.debug, stated=stated)
    counts = compare_counts(tree, name) if name in KNOWN else None
    if counts == []:
        LOG.info("%s: all counts match those published for %s", tree.root, KNOWN[name].title)
    done = extract(
        dataset,
        root=root,
        model=model,
        towers=towers,
        out=cache,
        device=device,
        workers=workers,
        layout=layout,
        class_names=class_names,
        accept=accept,
    )
    table = read_table(done.path)
    domains = table.domain_names
    base = RunConfig(
        held_out=tuple((one,) for one in domains) if len(domains) > 1 else ((),), rounds=rounds
    )
    swept = sweep(
        table,
        from_options(BLOG, seeds=seeds),
        base,
        runs=runs,
        out=out,
        device=device,
        backend=backend,
        cache=(str(done.path),),
    )
    folder = Path(swept["sweep"])
    records, _ = read_trials(folder / "trials.jsonl")
    ended = {r.seed: r.results for r in records.values() if r.status == "done"}
    if not ended:
        why = next((r.error for r in records.values() if r.error), "see its trials.jsonl")
        raise ConfigError(f"{folder}: no training succeeded: {why}")
    facts = cache_facts(table)
    document = {
        "dataset": facts["dataset"],
        "model": facts["model"],
        "cache": str(done.path),
        "counts": counts,
        "rounds": rounds,
        "lost": sorted(r.seed for r in records.values() if r.status != "done"),
        **compared(ended, released_figures(facts)),
        "sweep": str(folder),
        "again": swept["best"]["command"],
    }
    replace_file(
        folder / NAME, (json.dumps(sealed(document), allow_nan=False, indent=2) + "\n").encode()
    )
    return document
