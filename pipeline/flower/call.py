"""Asking the sites of a federation: who they are, then what each made of a round."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from cache.identity import compare_identity
from cache.table import CacheError, FeatureTable
from kernels.heads.plain import Kind, size
from pipeline.errors import ConfigError
from pipeline.federation.payload import Encoded
from pipeline.flower.messages import Answer, Arrays, Ask, read_answer, reading, write_ask
from pipeline.flower.site import demand_of
from pipeline.settings import RunConfig, as_json

Parts = tuple[str, Arrays]
Exchange = Callable[[int, Mapping[int, Parts]], Mapping[int, Parts | str]]
"""(round, what each site is asked) -> what came back in time; a str says why a site has no answer.

Sites are numbers. One that is not in what comes back did not answer in time.
"""


class Federation(NamedTuple):
    """What takes part in a run, found out before its first round."""

    config: RunConfig
    kind: Kind
    domains: tuple[str, ...]  # the held-out ones too; a domain's place names its row orders
    clients: dict[str, str]  # their domains, in client order
    demand: dict[str, Any]  # what every cache was made with
    text: Tensor  # (C, D) float32, the class names' features
    facts: dict[str, dict[str, Any]]  # by client, what its site told of its cache


class Heard(NamedTuple):
    """What one client's site answered in a round."""

    node: int
    rows: int  # train
    loss: float | None
    right: dict[str, tuple[int, int]]  # by use: rows answered right, of how many
    zero_shot: dict[str, tuple[int, int]]
    update: Encoded | None


def introduce(
    config: RunConfig, exchange: Exchange, nodes: list[int], held: FeatureTable | None, least: int,
    say: Callable[[str], None],
) -> tuple[Federation, dict[int, list[str]]]:  # fmt: skip
    """Asks every site who it is; the second value says whose clients each site has.

    held   the server's own table, with the held-out domains; None: it has none
    least  sites without which there is no run

    A site whose cache was made unlike the server's own, or without one unlike most sites', is left
    out by name. Raises ConfigError when too few remain.
    """
    ask = Ask(as_json(config), {}, (), 0, {}, None, {})
    answers, lost = _ask_all(exchange, 0, {node: ask for node in nodes}, config.payload, 0)
    demand = demand_of(held) if held is not None else _common(answers)
    taken: set[str] = set()
    for node, answer in list(answers.items()):
        try:
            _refuse_unlike(answer, demand, held is not None)
            if twice := sorted(taken & set(answer.clients)):
                raise ConfigError(f"another site has a client {twice[0]!r} as well")
            taken |= set(answer.clients)
        except (CacheError, ConfigError) as error:
            lost[node] = str(error)
            del answers[node]
    for node, why in lost.items():
        say(f"site {node} is left out: {why}")
    if len(answers) < max(least, 1):
        raise ConfigError(
            f"{len(answers)} of {len(nodes)} sites can take part, at least {max(least, 1)} must: "
            + "; ".join(dict.fromkeys(lost.values()))
        )
    known = {node: list(answer.clients) for node, answer in answers.items()}
    return _federation(config, answers, demand, held), known


def ask_round(
    fed: Federation, exchange: Exchange, known: dict[int, list[str]], nodes: list[int], round: int,
    work: dict[str, float], adapter: Encoded, shifts: dict[str, Tensor],
) -> tuple[dict[str, Heard], dict[str, str]]:  # fmt: skip
    """One round's answers by client, and for clients without one the reason.

    known  whose clients a site has; a site that is not there yet only answers who it is and with
           its counts, and joins for the next round if its clients are nobody else's; changed
    """
    settings = as_json(fed.config)
    asks = {
        node: Ask(
            settings,
            fed.demand,
            fed.domains,
            round,
            {name: work[name] for name in known.get(node, ()) if name in work},
            adapter,
            {name: shifts[name] for name in known.get(node, ()) if name in shifts},
        )
        for node in nodes
    }
    answers, lost = _ask_all(exchange, round, asks, fed.config.payload, size(fed.kind))
    heard: dict[str, Heard] = {}
    for node, answer in answers.items():
        try:
            _join(fed, known, answers, node, answer)
        except ConfigError as error:
            lost[node] = str(error)
            continue
        for name, own in answer.clients.items():
            right, zero = (
                {use: by_client[name] for use, by_client in counts.items() if name in by_client}
                for counts in (answer.right, answer.zero_shot)
            )
            update = answer.updates.get(name) if name in asks[node].work else None
            heard[name] = Heard(node, own["rows"], own["loss"], right, zero, update)
    home = {name: node for node, names in known.items() for name in names}
    absent = {name: "its site is not connected" for name in fed.clients if name not in heard}
    absent |= {name: lost[home[name]] for name in absent if home.get(name) in lost}
    return heard, absent


def _ask_all(
    exchange: Exchange, round: int, asks: dict[int, Ask], payload: str, count: int
) -> tuple[dict[int, Answer], dict[int, str]]:
    came = exchange(round, {node: write_ask(ask) for node, ask in asks.items()})
    answers: dict[int, Answer] = {}
    lost: dict[int, str] = {}
    for node in asks:
        found = came.get(node, "its site did not answer in time")
        if isinstance(found, str):
            lost[node] = found
            continue
        try:
            answers[node] = read_answer(*found, payload, count)
            if not answers[node].clients:
                raise ConfigError("its answer names no client")
        except ConfigError as error:
            answers.pop(node, None)
            lost[node] = str(error)
    return answers, lost


def _common(answers: dict[int, Answer]) -> dict[str, Any]:
    """The demand that most sites' caches meet; of the same many, the first client's by name."""
    ranked = sorted(answers.values(), key=lambda answer: min(answer.clients))
    demands = [answer.cache.get("demand") or {} for answer in ranked]
    if not demands:
        return {}
    texts = [repr(demand) for demand in demands]
    return demands[texts.index(Counter(texts).most_common(1)[0][0])]


def _refuse_unlike(answer: Answer, demand: dict[str, Any], own: bool) -> None:
    names = ", ".join(answer.clients)
    with reading("what the sites tell of their caches"):
        shape = (len(demand["class_names"]), int(demand["width"]))
    compare_identity(
        demand, answer.cache.get("demand") or {}, f"the cache of {names}",
        f"{'the server has' if own else 'most sites have'} what is asked for",
    )  # fmt: skip
    if answer.text is None or answer.text.shape != shape:
        raise ConfigError(f"the site of {names} did not send its text features")


def _federation(
    config: RunConfig, answers: dict[int, Answer], demand: dict[str, Any], held: FeatureTable | None
) -> Federation:
    facts = {name: answer.cache for answer in answers.values() for name in answer.clients}
    domain_of = {
        name: own["domain"] for answer in answers.values() for name, own in answer.clients.items()
    }
    names = {*domain_of.values(), *config.held_out[0]}
    domains = tuple(sorted(names))
    if held is not None and names <= set(held.domain_names):
        domains = held.domain_names

    def place(name: str) -> tuple[int, int, str]:
        number = name.removeprefix(domain_of[name] + "/")
        return domains.index(domain_of[name]), int(number) if number.isdecimal() else 0, name

    clients = {name: domain_of[name] for name in sorted(domain_of, key=place)}
    kind = Kind(config.mode, config.head, demand["width"], len(demand["class_names"]), config.rank)
    text = answers[min(answers)].text
    return Federation(config, kind, domains, clients, demand, text, facts)


def _join(
    fed: Federation, known: dict[int, list[str]], answers: dict[int, Answer], node: int,
    answer: Answer,
) -> None:  # fmt: skip
    """Raises ConfigError for a site whose clients are not its own or not of this run."""
    names = list(answer.clients)
    for name, own in answer.clients.items():
        if fed.clients.get(name) != own["domain"]:
            raise ConfigError(f"the run began without client {name!r}")
        for other, its in known.items():
            if other != node and other in answers and name in its:
                raise ConfigError(f"another site has a client {name!r} as well")
    for other in [n for n, its in known.items() if n != node and set(its) & set(names)]:
        known[other] = [name for name in known[other] if name not in names]
    known[node] = names
