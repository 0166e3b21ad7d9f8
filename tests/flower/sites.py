"""Sites of a federation without a network: the app of each is called with Flower's messages."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context, Error, Message, RecordDict

from cache.container.checksums import content_sha256, row_blocks
from cache.store import read_table, write_table
from cache.table import FeatureTable
from pipeline.flower.app import client_app
from pipeline.flower.grid import REFUSED
from pipeline.flower.records import plain, records
from pipeline.flower.run_config import DEFAULTS, OfRun
from pipeline.flower.server import serve
from pipeline.flower.site import Site
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
    """Flower's Grid for strategies, without a network: calls the app at sites one after another.

    Each site has a context that lasts the whole run. `sent` has what was sent, by message type,
    round and node, `came` what replies held.
    """

    def __init__(self, *sites: Site) -> None:
        self.contexts = {node: context(site) for node, site in enumerate(sites, 100)}
        self.run_config: dict = {}
        self.sent: list[tuple[str, int, dict[int, RecordDict]]] = []
        self.came: list[RecordDict] = []

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if not messages:
            return []
        first = messages[0].metadata
        asks = {m.metadata.dst_node_id: m.content for m in messages}
        self.sent.append((first.message_type, int(first.group_id), asks))
        replies = [self.one(message) for message in messages]
        self.came += [reply.content for reply in replies if reply.has_content()]
        return replies

    def one(self, message: Message) -> Message:
        own = self.contexts[message.metadata.dst_node_id]
        own.run_config = self.run_config
        reply = client_app(message, own)
        if REFUSED in reply.content:
            why = reply.content.config_records[REFUSED]["why"]
            return Message(Error(0, str(why)), reply_to=message)
        return reply


class Lying(Network):
    """Sites of which node 101's reply is changed on its way, in the calls whose numbers are given.

    Call 0 asks who the sites are, call r + 1 is round r. A lie takes a reply's arrays, metrics and
    config, changes them or returns others; None: no reply.
    """

    def __init__(self, lie, *sites: Site, calls=(2,)) -> None:
        super().__init__(*sites)
        self.lie, self.calls = lie, calls

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        if not replies or len(self.sent) - 1 not in self.calls:
            return replies
        return [own for reply in replies for own in self._changed(reply)]

    def _changed(self, reply: Message) -> list[Message]:
        if reply.metadata.src_node_id != 101 or not reply.has_content():
            return [reply]
        found = self.lie(*copied(reply.content))
        if found is None:
            return []
        reply.content = records(*found) if isinstance(found, tuple) else found
        return [reply]


def copied(content: RecordDict) -> tuple[dict, dict, dict]:
    """Arrays, metrics and config of a message, to be changed."""
    arrays, metrics, told = plain(content)
    return {n: a.copy() for n, a in arrays.items()}, copy.deepcopy(metrics), copy.deepcopy(told)


def context(site: Site) -> Context:
    named = {name: str(value) for name, value in vars(site).items() if value and name != "part"}
    return Context(1, 1, named, RecordDict(), {})


def changed(**values):
    """A lie: other metrics or config; of lists the first entry."""

    def lie(arrays, metrics, told):
        for name, value in values.items():
            where = metrics if name in metrics else told
            if isinstance(where.get(name), list) and not isinstance(value, list):
                value = [value, *where[name][1:]]
            where[name] = value
        return arrays, metrics, told

    return lie


def run(network, config: RunConfig, out: Path, held=None, least=1, said=None, force=False) -> dict:
    network.run_config = run_config(config)
    with logged() as messages:
        try:
            terms = OfRun(out=str(out), force=force, min_sites=least, sites=least, timeout=60.0)
            return serve(config, network, held, terms, out.parent)
        finally:
            if said is not None:
                said += messages


def run_config(config: RunConfig) -> dict:
    """Settings as `flwr run --run-config` has them."""
    settings = vars(config) | {"held_out": ",".join(config.held_out[0]) or "none"}
    return {**DEFAULTS, **settings}
