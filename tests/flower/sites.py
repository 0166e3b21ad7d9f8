"""Sites of a federation without a network: messages pass through their JSON and arrays."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.container.checksums import content_sha256, row_blocks
from cache.store import read_table, write_table
from cache.table import FeatureTable
from pipeline.flower.messages import read_ask, write_answer
from pipeline.flower.server import Terms, serve
from pipeline.flower.site import Site, answer, reason
from pipeline.settings import RunConfig
from tests.conftest import logged
from tests.runs.small_runs import small


def whole(folder: Path) -> FeatureTable:
    """Four domains in one cache file."""
    write_table(folder / "whole.h5", small(rows=(60, 45, 80, 30)))
    return read_table(folder / "whole.h5")


def of_domains(table: FeatureTable, *names: str) -> FeatureTable:
    """The rows of some domains, as a cache of its own."""
    places = [table.domain_names.index(name) for name in names]
    rows = np.flatnonzero(np.isin(table.domains, places))
    features, labels = np.array(table.features[rows]), table.labels[rows]
    domains = np.array([places.index(d) for d in table.domains[rows]], np.int64)
    sha = content_sha256(row_blocks(features), features.dtype, labels, domains, table.text_features)
    split = None if table.split is None else table.split[rows]
    return replace(
        table, source=f"site of {','.join(names)}", features=features, labels=labels,
        domains=domains, domain_names=names, split=split, content_sha256=sha, block_crc32=None,
    )  # fmt: skip


def cut(table: FeatureTable, folder: Path, *groups: tuple[str, ...]) -> list[Path]:
    """A cache file for each group of domains."""
    files = []
    for names in groups:
        files.append(folder / f"{'-'.join(names)}.h5")
        write_table(files[-1], of_domains(table, *names))
    return files


def config(**changed) -> RunConfig:
    settings = {"held_out": (("d",),), "rounds": 4, "batch": 8, "lr": 1e-3}
    return RunConfig(**(settings | changed))


def sites(files, **options) -> list[Site]:
    return [Site(file, backend="torch", **options) for file in files]


def lines(folder: Path) -> list[dict]:
    """What rounds.jsonl tells of the one fold."""
    text = (folder / "rounds.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["folds"][0] for line in text]


class Network:
    """Calls sites one after another; what they keep from round to round is kept here."""

    def __init__(self, *sites: Site) -> None:
        self.sites = dict(enumerate(sites, 100))
        self.kept = {node: {} for node in self.sites}
        self.asked = []

    def online(self) -> list[int]:
        return list(self.sites)

    def __call__(self, round, asks):
        self.asked.append((round, asks))
        return {node: self.one(node, *parts) for node, parts in asks.items()}

    def one(self, node, text, arrays):
        try:
            told, self.kept[node] = answer(
                self.sites[node], read_ask(text, arrays), self.kept[node]
            )
        except Exception as error:
            if not hasattr(error, "exit_code"):
                raise
            return reason(self.sites[node].cache, error)
        return write_answer(told)


class Lying(Network):
    """Sites of which node 101's answer is changed on its way, in the calls whose numbers are given.

    Call 0 asks who the sites are, call r + 1 is round r.
    """

    def __init__(self, lie, *sites: Site, calls=(2,)) -> None:
        super().__init__(*sites)
        self.lie, self.calls = lie, calls

    def __call__(self, round, asks):
        answers = dict(super().__call__(round, asks))
        if len(self.asked) - 1 in self.calls and 101 in answers:
            text, arrays = answers[101]
            found = self.lie(json.loads(text), dict(arrays))
            if found is None:
                del answers[101]
            else:
                answers[101] = found
        return answers


def changed(path, value):
    """A lie: another value in an answer's JSON."""

    def lie(told, arrays):
        at = told
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value
        return json.dumps(told), arrays

    return lie


def run(network, config: RunConfig, out: Path, held=None, least=1, said=None, **terms) -> dict:
    terms = Terms(least=least, runs=out, out=out, **terms)
    with logged() as messages:
        try:
            return serve(config, network, network.online, held, terms)
        finally:
            if said is not None:
                said += messages
