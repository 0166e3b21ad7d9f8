"""How cache import reads files in their usual forms: understood and reported, or refused."""

import logging
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import store
from cache.npz import read_npz, write_npz
from cache.npz_keys import OPTIONAL, misnamed, nearest_key
from cache.npz_values import distinct
from cache.table import CacheError
from tests.cache.npz_files import arrays, save
from tests.cli.commands import call, refused
from tests.conftest import logged

KNOWN = ("features", "labels", "text_features", *OPTIONAL)
FIELD = {  # synonyms in use
    "features": ("image_features", "Image-Features", "feats", "embeddings", "image_embeds", "X"),
    "labels": ("label", "y", "targets", "class_ids", "class"),
    "text_features": ("text", "text_embeddings", "text_feature", "zeroshot_weights"),
    "domains": ("domain", "domain_labels", "envs", "domain_id"),
    "class_names": ("classnames", "class_name", "classes", "ClassNames", "label_names"),
    "domain_names": ("domainnames", "env_names"),
    "split": ("splits", "partition", "subset"),
    "logit_scale": ("logit_scales", "temperature", "scale", "logitscale"),
    "model": ("model_name", "backbone"),
    "normalised": ("normalized", "normalize"),
    "dataset": ("dataset_name", "datasets"),
}


def heard(path, **settings) -> tuple:
    with logged() as said:
        table = read_npz(path, **settings)
    assert not any("\n" in sentence for sentence in said)
    return table, "\n".join(said)


@pytest.mark.parametrize(("known", "other"), [(k, o) for k, names in FIELD.items() for o in names])
def test_a_key_by_another_name_is_refused_with_the_right_one(tmp_path, known, other):
    with pytest.raises(CacheError) as caught:
        read_npz(save(tmp_path, **{known: None, other: np.zeros(3)}))
    assert f"{other!r} looks like {known}" in str(caught.value) and "rename" in str(caught.value)
    if known in OPTIONAL:
        table, said = heard(save(tmp_path, **{other: np.zeros(3)}), ignore=[other])
        assert f"ignored keys: {other}" in said and len(table.labels) == 40


@given(st.sampled_from(KNOWN), st.data())
@settings(max_examples=300)
def test_typing_errors_are_near_misses(known, data):
    kind = data.draw(st.sampled_from(["case", "sign", "plural", "missing", "doubled"]))
    at = data.draw(st.integers(1, len(known) - 1))
    other = {
        "case": known.upper(),
        "sign": known.replace("_", "-") + "_",
        "plural": known.removesuffix("s") if known.endswith("s") else known + "s",
        "missing": known[:at] + known[at + 1 :],
        "doubled": known[:at] + known[at - 1] + known[at:],
    }[kind]
    if len(known) > 5:
        assert nearest_key(other) == known
        assert misnamed([other]) and not misnamed([other, known]) and not misnamed([other], [other])


@given(st.text(max_size=30))
@settings(max_examples=100)
def test_any_key_is_ignored_or_near(key):
    assert nearest_key(key) in (None, *KNOWN)


def test_keys_of_other_kinds_are_ignored_by_name(tmp_path):
    others = ("paths", "order_r0_e0_c1", "train_c1", "config", "init_w1", "filenames", "seed")
    assert not misnamed(others)
    table, said = heard(save(tmp_path, **dict.fromkeys((*others, "\x1b[2J"), np.zeros(1))))
    assert "ignored keys: " in said and "seed" in said and "\x1b" not in said


def test_what_was_understood_is_said(tmp_path):
    path = save(
        tmp_path,
        domains=np.arange(40) % 2,
        domain_names=np.array(["photo", "sketch"]),
        class_names=np.array(["cat", "dog", "owl"]),
        split=np.arange(40) % 3,
        model=np.array("ViT-B/32"),
        logit_scale=np.float32(50),
    )
    said = heard(path)[1]
    for words in (
        "40 rows, width 5, float16; dataset a, model ViT-B/32",
        "3 classes: cat, dog, owl",
        "2 domains, by rows: photo 20, sketch 20",
        "split: train 14, val 13, test 13",
        "multiplier): 50",
        "features: raw length, mean",
    ):
        assert words in said
    assert "warning" not in said and "ignored" not in said
    assert "no logit_scale: using 100" in heard(save(tmp_path))[1]


@given(st.floats(1e-3, 10))
@settings(max_examples=30)
def test_a_logarithm_is_no_multiplier(tmp_path_factory, scale):
    path = save(tmp_path_factory.mktemp("log"), logit_scale=np.float64(scale))
    with pytest.raises(CacheError, match="a logarithm: its exponential is") as caught:
        read_npz(path)
    advised = [float(number) for number in re.findall(r"--logit-scale (\S+)", str(caught.value))]
    assert advised == [pytest.approx(math.exp(scale), rel=1e-3), pytest.approx(scale, rel=1e-3)]
    for one in advised:
        assert read_npz(path, logit_scale=one).logit_scale == one


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 1e7, 1e-9])
def test_scales_that_no_score_survives(tmp_path, scale):
    for path, given_scale in ((save(tmp_path), scale), (save(tmp_path, logit_scale=scale), None)):
        with pytest.raises(CacheError, match="logit_scale|logarithm"):
            read_npz(path, logit_scale=given_scale)


LABELS = arrays()["labels"]
NAMES = np.array(["cat", "dog", "owl"])
FORMS = {
    "float64": LABELS.astype(float),
    "float16": LABELS.astype("f2"),
    "uint8": LABELS.astype("u1"),
    "column": LABELS[:, None],
    "float column": LABELS[:, None].astype("f4"),
    "one-hot": np.eye(3)[LABELS],
    "bool one-hot": np.eye(3, dtype=bool)[LABELS],
    "words": NAMES[LABELS],
    "column of words": NAMES[LABELS][:, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_and_domains_in_any_form(tmp_path, form):
    changes = {"class_names": NAMES, "domain_names": NAMES, "domains": FORMS[form]}
    table, said = heard(save(tmp_path, labels=FORMS[form], **changes))
    np.testing.assert_array_equal(table.labels, LABELS)
    np.testing.assert_array_equal(table.domains, LABELS)
    assert ("read as" in said) == (form != "uint8")


def test_domains_as_words_name_themselves(tmp_path):
    table = read_npz(save(tmp_path, domains=NAMES[LABELS]))
    assert table.domain_names == tuple(NAMES) and (table.domains == LABELS).all()


def test_numbers_from_1(tmp_path):
    changes = {"labels": LABELS + 1, "domains": LABELS + 1, "domain_names": NAMES}
    path = save(tmp_path, **changes)
    with pytest.raises(CacheError, match=r"labels count from 1 \(1 to 3.*--labels-from 1"):
        read_npz(path)
    with pytest.raises(CacheError, match="--domains-from 1"):
        read_npz(path, labels_from=1)
    table = read_npz(path, labels_from=1, domains_from=1)
    assert (table.labels == LABELS).all() and (table.domains == LABELS).all()
    assert "--domains-from 1" in heard(save(tmp_path, domains=LABELS + 1))[1]
    assert not read_npz(save(tmp_path), domains_from=1).domains.any()  # a file without domains


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": NAMES[LABELS]}, "no class_names to say which row"),
        ({"labels": NAMES[LABELS], "class_names": np.array(["cats", "dog", "owl"])}, "mean 'cats'"),
        ({"labels": NAMES[LABELS], "class_names": NAMES[[0, 1, 1]]}, "'dog'.* 2 times|'owl'"),
        ({"labels": np.full(40, np.nan)}, "labels must be integers"),
        ({"labels": np.full(40, 1e300)}, "got numbers up to"),
        ({"labels": np.full(40, 1 << 63, np.uint64)}, "got numbers up to"),
        ({"labels": np.ones((40, 3))}, "labels must be"),
        ({"labels": np.eye(4)[LABELS]}, "labels must be"),
        ({"split": np.array(["train", "holdout"] * 20)}, "got 'holdout'"),
        ({"split": np.r_[np.zeros(33), np.full(7, -1)]}, "without a split: 7 rows, first row 33"),
        ({"split": np.zeros(39, int)}, "split must be"),
        ({"dataset": np.array("a\x1b[2J")}, "must be printable"),
        ({"dataset": np.array("a" * 201)}, "at most 200"),
    ],
)
def test_what_is_in_no_form_is_refused(tmp_path, changes, message):
    with pytest.raises(CacheError, match=message) as caught:
        read_npz(save(tmp_path, **changes))
    assert str(caught.value).count(str(tmp_path)) == 1 and "\n" not in str(caught.value)


def test_splits_as_words(tmp_path):
    words = np.array(["train", "Validation", "test"])
    table = read_npz(save(tmp_path, split=words[LABELS]))
    assert (table.split == LABELS).all()


@given(st.lists(st.sampled_from(["a", "b", "a (2)", "a (3)", "a (2) (2)"]), min_size=1))
def test_repeated_names_get_numbers(names):
    with logged() as said:
        found = distinct(names)
    assert len(set(found)) == len(found) == len(names)
    assert len(said) == (len(set(names)) < len(names))
    for number, name in enumerate(names):
        if name not in names[:number]:
            assert found[number] == name
        else:
            assert found[number].startswith(f"{name} (")


SURPRISES = {
    "classes without rows": ({"labels": np.zeros(40, int)}, "2 classes have no rows: class_1, cl"),
    "domains without rows": ({"domain_names": NAMES}, "2 domains have no rows: dog, owl"),
    "no test rows": ({"split": np.arange(40) % 2}, "no row is in the split test"),
    "domain without train": (
        {"domains": np.arange(40) // 20, "split": np.arange(40) // 20 * 2},
        "domains without train rows: domain_1",
    ),
    "mixed lengths": (
        {"features": np.r_[np.tile([1, 0, 0, 0, 0], (9, 1)), np.full((31, 5), 4.0)]},
        "9 of 40 feature rows have length 1, the others 8.944",
    ),
    "equal texts": ({"text_features": np.eye(5)[[0, 1, 0]]}, r"class_2 \(as class_0\)"),
    "equal directions": ({"text_features": np.eye(5)[[0, 1, 0]] * [[1], [1], [7.3]]}, "class_2"),
    "names twice": ({"class_names": NAMES[[0, 1, 0]]}, r"more than once: cat;.*cat \(2\)"),
    "claimed unit": ({"normalised": np.bool_(True)}, "normalised is True, but the mean length"),
}


@pytest.mark.parametrize("name", SURPRISES)
def test_what_was_probably_not_meant_is_a_warning(tmp_path, name):
    changes, message = SURPRISES[name]
    with logged(logging.WARNING) as said:
        read_npz(save(tmp_path, **changes))
    assert any(re.search(message, sentence) for sentence in said), said


def unit_rows(dtype: str = "float16") -> np.ndarray:
    rows = arrays()["features"].astype(np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(factor=st.floats(1e-2, 1e3))
@settings(max_examples=15)
def test_the_feature_scale(tmp_path_factory, dtype, factor):
    path = save(tmp_path_factory.mktemp("scale"), features=unit_rows(dtype))
    plain, scaled = read_npz(path), read_npz(path, feature_scale=factor)
    wanted = plain.features.astype(np.float64) * factor
    step = np.finfo(plain.features.dtype)
    np.testing.assert_allclose(scaled.features, wanted, rtol=2 * step.eps, atol=step.tiny)
    assert scaled.features.dtype == plain.features.dtype
    assert (scaled.text_features == plain.text_features).all()
    if factor != 1:
        assert scaled.identity["feature_scale"] == factor
    assert plain.identity["normalised"]
    if abs(abs(factor - 1) - 0.01) > 0.002:
        assert scaled.identity["normalised"] == (abs(factor - 1) < 0.01)


def test_scales_that_are_none(tmp_path):
    path = save(tmp_path)
    for factor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(CacheError, match="--feature-scale must be a number above 0"):
            read_npz(path, feature_scale=factor)
    with pytest.raises(CacheError, match="NaN or Inf"):
        read_npz(path, feature_scale=1e6)
    assert "feature_scale" not in read_npz(path).identity
    claimed = save(tmp_path, features=unit_rows(), normalised=np.bool_(True))
    assert read_npz(claimed, feature_scale=10).identity["normalised"] is False


def test_the_data_sets_name_goes_out_and_comes_in(tmp_path):
    for table, name in (
        (read_npz(save(tmp_path)), "a"),
        (read_npz(save(tmp_path), dataset="mine"), "mine"),
        (read_npz(save(tmp_path, dataset=np.array("theirs"))), "theirs"),
    ):
        assert table.identity["dataset"] == name
        write_npz(table, tmp_path / "b.npz", force=True)
        assert read_npz(tmp_path / "b.npz").fingerprint == table.fingerprint


def test_the_commands(tmp_path):
    path, out = save(tmp_path, domain=np.zeros(40, int), note=np.zeros(1)), tmp_path / "x.h5"
    refused("cache", "import", path, "--out", out, code=4, match="'domain' looks like domains")
    words = ("--ignore", "domain", "--dataset-name", "mine", "--feature-scale", "2")
    done = call("cache", "import", path, "--out", out, *words)
    assert done.stdout == f"{out}\n" and "ignored keys: domain, note" in done.stderr
    facts = store.info(out)
    assert facts["dataset"] == "mine" and facts["identity"]["feature_scale"] == 2
    done = call("cache", "export", out, "--out", tmp_path / "x.npz")
    assert done.stdout == f"{tmp_path / 'x.npz'}\n" and "40 rows, width 5" in done.stderr
    assert "not exported, of what the cache was made from: feature_scale" in done.stderr
    refused("cache", "import", path, "--ignore", "domain", "--out", path / "x.h5", code=4,
            match="is not a folder")  # fmt: skip
