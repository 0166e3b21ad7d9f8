"""Asking the sites of a federation: who they are, then what each made of a round."""

import logging
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import Message
from torch import Tensor

from cache.identity import compare_identity
from cache.table import CacheError, FeatureTable
from kernels.heads.plain import Kind, size
from pipeline.errors import ConfigError
from pipeline.federation.methods.robust import median
from pipeline.federation.payload import Encoded
from pipeline.federation.plan import adapter_kind
from pipeline.flower.answer import Answer, Client, Expected, read_answer
from pipeline.flower.grid import Patient
from pipeline.flower.records import Ask, printable, write_ask
from pipeline.flower.site import demand_of
from pipeline.settings import RunConfig

LOG = logging.getLogger(__name__)

GRACE = 5.0  # seconds after a round's end in which Flower still delivers its messages
ROUNDED = 0.01  # of a row's length: CLIP's text encoder in float16 differs by 0.001 of it
MOST_ROWS_RATIO = 100
"""How many times the rows of most other sites' domains a domain may be said to have."""


class Federation(NamedTuple):
    """What takes part in a run, found out before its first round."""

    config: RunConfig
    kind: Kind
    domains: tuple[str, ...]  # the held-out ones too; a domain's place names its row orders
    clients: dict[str, str]  # their domains, in client order
    demand: dict[str, Any]  # what every cache was made with
    text: Tensor  # (C, D) float32, the class names' features
    facts: dict[str, dict[str, Any]]  # by client, what its site stated of its cache
    stated: dict[str, Client]  # by client, what its site stated of it; changed as `fixed` grows
    fixed: set[str]  # clients whose rows by use are final: in a partition, from their first round
    groups: frozenset[frozenset[str]]  # the clients of each site


class Heard(NamedTuple):
    """What one client's site answered in a round."""

    node: int
    client: Client
    update: Encoded | None
    solved: dict[str, Tensor]  # all that its site sent of sums.of_site


Asked = dict[int, Expected]
"""By site, what its answer must follow."""


def introduce(
    config: RunConfig, grid: Patient, held: FeatureTable | None, least: int, timeout: float
) -> tuple[Federation, dict[int, list[str]], dict[int, str]]:
    """Asks every site who it is.

    held     the server's own table, with the held-out domains; None: it has none
    least    sites without which there is no run;    timeout  seconds
    returns  the federation; whose clients each site has; sites that are left out, and why

    A site is left out whose answer is not valid (answer.py), whose cache was made
    unlike the server's own (without one: unlike most sites'), or which claims over 100 times the
    rows of most others. Raises ConfigError when too few remain, or no cache is that of most sites.
    """
    nodes = list(grid.get_node_ids())
    asks = {node: (Ask({}, (), 0, {}, None), Expected(config, 0, "")) for node in nodes}
    messages, asked = messages_of(asks, "query", timeout)
    answers, lost = answers_of(grid.send_and_receive(messages, timeout=timeout), asked)
    _leave_out(answers, lost, _outlandish(answers))
    demand = demand_of(held) if held is not None else _common(answers)
    _leave_out(answers, lost, _unlike(answers, demand, held))
    text = None if held is None else torch.tensor(held.text_features)
    _leave_out(answers, lost, _other_texts(answers, text))
    taken: set[str] = set()
    for node, answer in list(answers.items()):
        if twice := sorted(taken & set(answer.clients)):
            why = f"another site has a client {twice[0]!r} as well"
            _leave_out(answers, lost, {node: why})
        else:
            taken |= set(answer.clients)
    for node, why in lost.items():
        LOG.warning(f"site {node} is left out: {why}")
    if len(answers) < max(least, 1):
        raise ConfigError(
            f"{len(answers)} of {len(nodes)} sites can take part, at least {max(least, 1)} must: "
            + "; ".join(dict.fromkeys(lost.values()))
        )
    known = {node: list(answer.clients) for node, answer in answers.items()}
    return _federation(config, answers, demand, held), known, lost


def ask_round(
    fed: Federation, known: Mapping[int, list[str]], nodes: Iterable[int], round: int,
    work: Mapping[str, float], adapter: Encoded, shifts: Mapping[str, Tensor],
    solve: str, sums: Mapping[str, Tensor], metric: Tensor | None,
) -> dict[int, tuple[Ask, Expected]]:  # fmt: skip
    """What each site is asked in a round, and what its answer must follow.

    known  whose clients a site has; a site that is not there yet only answers who it is and with
           its counts, and joins for the next round if its clients are nobody else's
    """
    hashes = {name: facts["content_sha256"] for name, facts in fed.facts.items()}
    asks = {}
    for node in nodes:
        own = known.get(node) or []
        mine = {name: work[name] for name in own if name in work}
        moved = {name: shifts[name] for name in own if name in shifts}
        domains = {"", *(fed.clients[name] for name in own)}
        theirs = {domain: sums[domain] for domain in sums if domain in domains}
        asks[node] = (
            Ask(
                fed.demand, fed.domains, round, mine, adapter, moved, "", solve, theirs,
                metric if mine else None,
            ),
            Expected(
                fed.config, round, "", size(fed.kind), frozenset(mine), frozenset(own) or None,
                fed.stated, frozenset(fed.fixed), hashes, fed.groups, solve, tuple(theirs),
                (fed.kind.classes, fed.kind.width),
            ),
        )  # fmt: skip
    return asks


def hear(
    fed: Federation, known: dict[int, list[str]], replies: Iterable[Message], asked: Asked
) -> tuple[dict[str, Heard], dict[str, str]]:
    """One round's answers by client, and for clients without one the reason; known is changed."""
    answers, lost = answers_of(replies, asked)
    heard: dict[str, Heard] = {}
    for node, answer in answers.items():
        try:
            _join(known, answers, node, answer)
        except ConfigError as error:
            lost[node] = str(error)
            continue
        for name, own in answer.clients.items():
            if name not in fed.fixed:
                fed.stated[name] = own.stated()
                fed.fixed.add(name)
            heard[name] = Heard(node, own, answer.updates.get(name), answer.solved)
    home = {name: node for node, names in known.items() for name in names}
    absent = {name: "its site is not connected" for name in fed.clients if name not in heard}
    absent |= {name: lost[home[name]] for name in absent if home.get(name) in lost}
    return heard, absent


def messages_of(
    asks: Mapping[int, tuple[Ask, Expected]], kind: str, timeout: float
) -> tuple[list[Message], Asked]:
    """Flower's messages, each with a nonce of its own, and what each site's answer must follow."""
    messages, asked = [], {}
    for node, (ask, expected) in asks.items():
        nonce = secrets.token_hex(8)
        content = write_ask(ask._replace(nonce=nonce))
        asked[node] = expected._replace(nonce=nonce)
        group = str(ask.round)
        messages.append(Message(content, node, kind, ttl=timeout + GRACE, group_id=group))
    return messages, asked


def answers_of(
    replies: Iterable[Message], asked: Asked
) -> tuple[dict[int, Answer], dict[int, str]]:
    """Valid answers by site, and why others have none."""
    came = {reply.metadata.src_node_id: reply for reply in replies}
    answers: dict[int, Answer] = {}
    lost: dict[int, str] = {}
    for node, expected in asked.items():
        if node not in came:
            lost[node] = "its site did not answer in time"
        elif came[node].has_error():
            lost[node] = printable(str(came[node].error.reason))
        else:
            try:
                answers[node] = read_answer(came[node].content, expected)
            except ConfigError as error:
                lost[node] = printable(str(error))
    return answers, lost


def close_texts(texts: Mapping[int, Tensor], reference: Tensor) -> list[int]:
    """The sites whose text features are the reference's up to rounding of CLIP's text encoder.

    texts      site -> (C, D) float32, finite
    reference  (C, D) float32
    """
    bound = ROUNDED * reference.norm(dim=1)
    return [n for n, text in texts.items() if bool(((text - reference).norm(dim=1) <= bound).all())]


def _leave_out(
    answers: dict[int, Answer], lost: dict[int, str], reasons: Mapping[int, str]
) -> None:
    for node, why in reasons.items():
        lost[node] = printable(why)
        del answers[node]


def _outlandish(answers: dict[int, Answer]) -> dict[int, str]:
    """Sites of a domain with over 100 times the rows of more than half of other sites' domains."""
    claims = {
        node: {own.domain: own.domain_rows for own in answer.clients.values()}
        for node, answer in answers.items()
    }
    found = {}
    for node, own in claims.items():
        others = [n for other in claims if other != node for n in claims[other].values()]
        for domain, rows in own.items():
            fewer = sum(MOST_ROWS_RATIO * n < rows for n in others)
            if len(others) > 1 and 2 * fewer > len(others):
                found[node] = (
                    f"it claims {rows:,} rows of {domain}, over {MOST_ROWS_RATIO} times those of "
                    f"{fewer} of {len(others)} domains at other sites"
                )
    return found


def _common(answers: dict[int, Answer]) -> dict[str, Any]:
    """The demand that more than half of the sites' caches meet. Raises ConfigError for none."""
    if not answers:
        return {}
    demands = {", ".join(answer.clients): answer.cache["demand"] for answer in answers.values()}
    texts = [repr(demand) for demand in demands.values()]
    most, count = Counter(texts).most_common(1)[0]
    demand = list(demands.values())[texts.index(most)]
    if 2 * count > len(answers):
        return demand
    try:
        for names, other in demands.items():
            compare_identity(demand, other, f"the cache of {names}", "no cache is that of most")
    except CacheError as error:
        why = str(error)
    raise ConfigError(
        f"the caches of {len(answers)} sites differ, and none was made as more than half of them: "
        f"{why}. Name the right one with --cache, or extract them alike"
    )


def _unlike(
    answers: dict[int, Answer], demand: dict[str, Any], held: FeatureTable | None
) -> dict[int, str]:
    found = {}
    whose = "most sites have" if held is None else "the server has"
    for node, answer in answers.items():
        names = ", ".join(answer.clients)
        way_out = f"{whose} what is asked for"
        try:
            compare_identity(demand, answer.cache["demand"], f"the cache of {names}", way_out)
        except CacheError as error:
            found[node] = str(error)
    return found


def _other_texts(answers: dict[int, Answer], own: Tensor | None) -> dict[int, str]:
    """Sites whose text features are not the server's own; without them, not those of most.

    CLIP's text encoder rounds differently on different machines, so a hundredth of a row's length
    may differ; of imported caches the demand has their hash.
    """
    texts = {node: answer.text for node, answer in answers.items() if answer.text is not None}
    if not texts:
        return {}
    shape = next(iter(texts.values())).shape
    whose = "most sites" if own is None else "the server"
    if own is None:
        own = median(torch.stack(list(texts.values())).flatten(1)).reshape(shape)
    close = close_texts(texts, own)
    if whose == "most sites" and 2 * len(close) <= len(texts):
        raise ConfigError(
            f"the text features of {len(texts)} sites differ, and none has those of most; extract "
            "the caches with one model and one --templates, or name the right one with --cache"
        )
    why = f"its text features are not those of {whose}, with the same model and prompts"
    return {node: why for node in texts if node not in close}


def _federation(
    config: RunConfig, answers: dict[int, Answer], demand: dict[str, Any], held: FeatureTable | None
) -> Federation:
    facts = {name: answer.cache for answer in answers.values() for name in answer.clients}
    stated = {name: own for answer in answers.values() for name, own in answer.clients.items()}
    domain_of = {name: own.domain for name, own in stated.items()}
    names = {*domain_of.values(), *config.held_out[0]}
    domains = tuple(sorted(names))
    if held is not None and names <= set(held.domain_names):
        domains = held.domain_names

    def place(name: str) -> tuple[int, int, str]:
        number = name.removeprefix(domain_of[name] + "/")
        return domains.index(domain_of[name]), int(number) if number.isdecimal() else 0, name

    clients = {name: domain_of[name] for name in sorted(domain_of, key=place)}
    kind = adapter_kind(config, demand["width"], len(demand["class_names"]))
    text = answers[min(answers)].text if held is None else torch.tensor(held.text_features)
    assert text is not None  # an answer of who a site is has them
    fixed = set(stated) if config.partition == "domain" else set[str]()
    groups = frozenset(frozenset(answer.clients) for answer in answers.values())
    return Federation(
        config, kind, domains, clients, demand, text, facts, stated, fixed, groups
    )  # fmt: skip


def _join(
    known: dict[int, list[str]], answers: dict[int, Answer], node: int, answer: Answer
) -> None:
    """Raises ConfigError for a site whose clients another one answers for in the same round."""
    names = set(answer.clients)
    for other, its in known.items():
        if other != node and other in answers and names & set(its):
            twice = min(names & set(its))
            raise ConfigError(f"another site has a client {twice!r} as well")
    for other in [n for n, its in known.items() if n != node and set(its) & names]:
        known[other] = [name for name in known[other] if name not in names]
    known[node] = list(answer.clients)
