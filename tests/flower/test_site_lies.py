"""Sites that lie or are silent in a round: the others' run is that without them."""

import json
import math

import numpy as np
import pytest
import torch

from pipeline.federation.local import Trained
from pipeline.flower.strategy import _without_long
from pipeline.runs.folder import read_adapters
from tests.flower.sites import Lying, Network, changed, config, lines, run, sites

PARTITION = {"partition": "iid", "clients": 2}


def no_answer(arrays, metrics, told):
    """A lie: silence."""
    return


class Replaying(Network):
    """Node 101 answers every round with its first answer to one."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        if replies and len(self.sent) > 1:
            reply = next(r for r in replies if r.metadata.src_node_id == 101)
            self.first = getattr(self, "first", reply.content)
            reply.content = self.first
        return replies


def test_a_replayed_answer_is_left_out_and_counted(files, tmp_path):
    said = []
    document = run(Replaying(*sites(files[:3])), config(), tmp_path / "run", said=said)
    told = lines(tmp_path / "run")
    assert [list(line["rejected"]) for line in told] == [[], ["b"], ["b"], ["b"]]
    assert "another request" in told[1]["rejected"]["b"]
    (out,) = document["left_out"]["clients"].items()
    assert out[0] == "b" and out[1]["times"] == 4 and out[1]["first_round"] == 1
    assert sum("nothing from b" in line for line in said) == 1
    assert any("b was left out 4 times in 4 rounds, first in round 1" in line for line in said)
    saved = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert saved["left_out"] == document["left_out"]


@pytest.mark.parametrize("more", [{}, PARTITION])
def test_a_site_without_an_answer_in_the_first_round_trains_in_the_next(files, tmp_path, more):
    silent = Lying(no_answer, *sites(files[:3]), calls=(1,))
    document = run(silent, config(rounds=3, **more), tmp_path / "run")
    domains = [{name[0] for name in line["train_loss"]} for line in lines(tmp_path / "run")]
    assert domains == [{"a", "c"}, {"a", "b", "c"}, {"a", "b", "c"}]
    assert {name[0] for name in document["left_out"]["clients"]} == {"b"}


@pytest.mark.parametrize("more", [{}, PARTITION])
def test_impossible_counts_do_not_choose_the_round(files, tmp_path, more):
    """A site that answers everything right in one round, of more rows than it has."""

    def lie(arrays, metrics, told):
        return arrays, metrics | {"right_val": [10**6 for _ in told["clients"]]}, told

    chosen = []
    for out, each in (("lied", lie), ("silent", no_answer)):
        network = Lying(each, *sites(files[:3]), calls=(2, 4))
        document = run(network, config(rounds=4, **more), tmp_path / out)
        chosen.append((document["results"][0]["best_round"], document["results"][0]["overall"]))
    assert chosen[0] == chosen[1]


def without_scales(arrays, metrics, told):
    return {n: a for n, a in arrays.items() if not n.endswith(":scales")}, metrics, told


ROUNDS = {
    "no scales": (without_scales, {"payload": "int8"}),
    "huge count": (changed(right_val=2**31), {}),
    "one more": (changed(right_val=10), {}),
    "rows": (changed(train=20_000_000), {"weighting": "rows"}),
    "domain rows": (changed(domain_rows=10**8), {}),
    "infinite rows": (changed(domain_rows=[math.inf]), {}),
    "other cache": (changed(content_sha256="0" * 64), {}),
    "another round": (changed(round=9), {}),
    "negative loss": (changed(val_loss=-1.0), {"choose": "loss"}),
    "infinite loss": (changed(val_loss=math.inf), {"choose": "loss"}),
    "losses of none": (changed(val_loss=[0.5]), {}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "call"),
    # With the last counts nothing is sent that could have scales.
    [(name, call) for name in ROUNDS for call in (1, 2, 4) if (name, call) != ("no scales", 4)],
)
def test_the_others_run_is_that_without_the_site(files, tmp_path, name, call):
    lie, more = ROUNDS[name]
    for out, each in (("lied", lie), ("silent", no_answer)):
        network = Lying(each, *sites(files[:3]), calls=(call,))
        run(network, config(rounds=3, **more), tmp_path / out)
    ours, theirs = ((tmp_path / out / "adapter.safetensors") for out in ("lied", "silent"))
    assert ours.read_bytes() == theirs.read_bytes() or all(
        torch.equal(value, read_adapters(theirs)[0][part])
        for part, value in read_adapters(ours)[0].items()
    )
    for one, other in zip(lines(tmp_path / "lied"), lines(tmp_path / "silent"), strict=True):
        assert list(one.pop("rejected")) == list(other.pop("rejected"))
        assert one == other


def moved(**by):
    def lie(arrays, metrics, told):
        return arrays, metrics | {use: [metrics[use][0] + n] for use, n in by.items()}, told

    return lie


fewer_rows, rows_moved = moved(train=-1), moved(train=-1, test=1)


@pytest.mark.parametrize("lie", [fewer_rows, rows_moved])
@pytest.mark.parametrize("more", [{}, {"eval": "every"}])
def test_rows_are_those_stated_at_first(files, tmp_path, lie, more):
    run(Lying(lie, *sites(files[:3])), config(rounds=2, **more), tmp_path / "run")
    rejected = lines(tmp_path / "run")[1]["rejected"]
    assert list(rejected) == ["b"] and "at first" in rejected["b"]


def trained(lengths):
    clients = torch.tensor(lengths)[:, None].expand(len(lengths), 4).clone()
    lanes = list(range(len(lengths)))
    return Trained(lanes, torch.zeros(len(lengths), 4), clients, torch.zeros(1, len(lengths)),
                   np.full(len(lengths), 5))  # fmt: skip


def test_a_long_update_is_left_out_however_many_rows_its_site_claims():
    rest, why = _without_long(config(), trained([1.0, 3000.0, 1.0]))
    assert list(why) == [1] and rest.lanes == [0, 2] and rest.steps.tolist() == [5, 0, 5]
    assert rest.clients[:, 0].tolist() == [1.0, 1.0] and rest.losses.shape == (1, 2)
    for lengths, settings_ in (([1.0, 900.0, 1.0], {}), ([1.0, 3000.0, 1.0], {"clip": 0.1}),
                               ([math.nan] * 3, {}), ([], {})):  # fmt: skip
        same, why = _without_long(config(**settings_), trained(lengths))
        assert why == {} and same.lanes == list(range(len(lengths)))
