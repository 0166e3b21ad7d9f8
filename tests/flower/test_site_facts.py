"""Sites whose first answer lies: who they are, what they hold, their text features."""

import json
import math

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from cache.store import read_table, write_table
from pipeline.errors import ConfigError
from pipeline.flower.call import close_texts
from pipeline.flower.site import Site
from tests.flower.sites import Lying, Network, changed, config, cut, lines, of_domains, run, sites

BIG = json.loads("[" * 90 + "]" * 90)


def with_text(change):
    return lambda arrays, metrics, told: ({"text": change(arrays["text"])}, metrics, told)


def with_demand(**values):
    def lie(arrays, metrics, told):
        demand = json.dumps(json.loads(told["demand"]) | values)
        return arrays, metrics, told | {"demand": demand}

    return lie


def named(domain, name):
    return lambda a, m, told: (a, m, told | {"domain": [domain], "clients": [name]})


def claiming(rows):
    def lie(arrays, metrics, told):
        own = {"train": [rows], "val": [1], "test": [1], "domain_rows": [rows + 2]}
        return arrays, metrics | own, told

    return lie


WHO = {
    "model is a list": changed(model=[]),
    "model is a number": changed(model=7),
    "rows are infinite": changed(domain_rows=[math.inf]),
    "data set is NaN": changed(dataset=math.nan),
    "20 million rows": claiming(20_000_000),
    "2^31 - 1 rows": claiming(2**31 - 1),
    "NaN text": with_text(lambda text: text * np.nan),
    "other text": with_text(lambda text: -text),
    "no text": lambda arrays, metrics, told: ({}, metrics, told),
    "the held-out domain": named("d", "d"),
    "another name": named("b", "b/0"),
    "50 MB": lambda a, metrics, told: (a, metrics, told | {"more": "x" * 50_000_000}),
    "logit scale": with_demand(logit_scale=21.0),
    "class names": with_demand(class_names=["a", "b", "c", "d"]),
    "no demand": changed(demand="{}"),
    "deep": changed(preprocessing='{"a": ' + json.dumps(BIG) + "}"),
    "no answer": lambda *_: RecordDict(),
}  # fmt: skip


@pytest.mark.parametrize("name", WHO)
def test_a_site_whose_facts_lie_is_left_out_before_the_first_round(files, tmp_path, name):
    cosine = {"mode": "FedAtTxt", "head": "cosine", "loss": "class"} if "text" in name else {}
    said = []
    network = Lying(WHO[name], *sites(files[:3]), calls=(0,))
    document = run(network, config(rounds=1, **cosine), tmp_path / "run", said=said)
    assert any(line.startswith("site 101 is left out: ") for line in said), said
    assert list(document["left_out"]["sites"]) == ["101"]
    (told,) = lines(tmp_path / "run")
    assert set(told["train_loss"]) == {"a", "c"} and math.isfinite(told["train_loss"]["a"])
    others = run(
        Network(*sites([files[0], files[2]])), config(rounds=1, **cosine), tmp_path / "two"
    )
    assert others["results"] == document["results"]


def first_lies(lie, own):
    """Node 101 is the first to be asked, and lies when it is asked who it is."""
    network = Lying(lie, *own, calls=(0,))
    network.contexts = dict(zip((101, 102, 103), network.contexts.values(), strict=True))
    return network


def test_the_first_site_is_not_believed_more_than_others(files, tmp_path):
    """Its text features are NaN, or its model is another one."""
    for lie in (WHO["NaN text"], WHO["logit scale"], WHO["class names"]):
        network = first_lies(lie, sites(files[1:2] + files[:1] + files[2:3]))
        run(network, config(rounds=1, held_out=(("d",),)), tmp_path / "run", force=True)
        assert set(lines(tmp_path / "run")[0]["train_loss"]) == {"a", "c"}


def test_without_a_majority_there_is_no_run_unless_the_server_has_a_cache(table, files, tmp_path):
    other = of_domains(table, "b")
    other = other.__class__(**{**other.__dict__, "text_features": other.text_features + 1})
    write_table(tmp_path / "b.h5", other)
    two = [Site(files[0]), Site(tmp_path / "b.h5")]
    with pytest.raises(ConfigError, match="the caches of 2 sites differ.*text_features_sha256"):
        run(Network(*two), config(rounds=1), tmp_path / "run")
    held = read_table(files[3])
    run(Network(*two), config(rounds=1), tmp_path / "held", held)
    assert set(lines(tmp_path / "held")[0]["train_loss"]) == {"a"}


TEXTS = {
    "NaN": lambda text: text * np.nan,
    "one infinite": lambda text: np.where(text == text.max(), np.inf, text),
    "a zero row": lambda text: text * (np.arange(len(text)) > 0)[:, None].astype(np.float32),
    "turned": lambda text: -text,
    "longer": lambda text: text * 2,
    "classes turned": lambda text: text[::-1].copy(),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("held", [True, False])
def test_text_features_of_extracted_caches_are_compared(table, tmp_path, name, held):
    """Extracted caches are known by their CLIP and prompts, which say nothing of the numbers."""
    identity = {"model": "demo", "dataset": "small", "weights_sha256": "1" * 64,
                "templates": ["a {}"], "preprocessing": {"crop": "center"}}  # fmt: skip
    known = table.__class__(**{**table.__dict__, "identity": identity, "block_crc32": None})
    parts = cut(known, tmp_path, ("a",), ("b",), ("c",), ("d",))

    lie = with_text(lambda text: TEXTS[name](text).astype(np.float32))
    cosine = {"mode": "FedAtTxt", "head": "cosine", "loss": "class"}
    network = first_lies(lie, sites(parts[:3]))
    own = read_table(parts[3]) if held else None
    document = run(network, config(rounds=1, **cosine), tmp_path / "run", own)
    assert "text features" in document["left_out"]["sites"]["101"]
    assert set(lines(tmp_path / "run")[0]["train_loss"]) == {"b", "c"}
    pair = Lying(lie, *sites(parts[:2]), calls=(0,))
    with pytest.raises(ConfigError, match="text features"):
        run(pair, config(rounds=1, **cosine), tmp_path / "pair", least=2)
    if name in ("NaN", "one infinite", "a zero row"):  # of two sites it is clear who is wrong
        pair = Lying(lie, *sites(parts[:2]), calls=(0,))
        run(pair, config(rounds=1, **cosine), tmp_path / "one")
        assert set(lines(tmp_path / "one")[0]["train_loss"]) == {"a"}


def test_text_features_of_extracted_caches_may_be_rounded_otherwise():
    text = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    texts = {1: text, 2: text + 1e-3 * text.norm(dim=1, keepdim=True) / 32**0.5, 3: -text}
    assert close_texts(texts, text) == [1, 2]
    assert close_texts(texts, text * 1.5) == []


def test_rows_of_an_uneven_federation_are_taken(table, tmp_path):
    """Up to a hundred times as many rows as others have are possible."""
    parts = cut(table, tmp_path, ("a",), ("b",), ("c",))
    network = Lying(claiming(3_000), *sites(parts), calls=(0,))
    said = []
    run(network, config(rounds=1), tmp_path / "run", said=said)
    assert not any("is left out: it claims" in line for line in said)
