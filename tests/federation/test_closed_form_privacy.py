"""Noise and clipping of the sums that a closed-form head is solved from, and its epsilon."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pipeline.federation.methods.closed_form import SENSITIVITY, clipped_sums, released, sums_of
from tests.federation.closed_form_folds import folds_of
from tests.packages import need
from tests.runs.small_runs import config, run, small


def test_noise_has_the_stated_size_and_the_sums_stay_possible():
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(3000, 40))), torch.from_numpy(rng.integers(0, 5, 3000))
    sums = sums_of(x, y, 5)
    sigma = 0.5 * SENSITIVITY
    noisy = [released(sums, sigma, seed) for seed in range(40)]
    gram = torch.stack([n.gram - sums.gram for n in noisy])
    above = torch.triu_indices(40, 40, 1)
    assert abs(float(gram[:, above[0], above[1]].std()) / (sigma / 2**0.5) - 1) < 0.05
    assert abs(float(gram.diagonal(dim1=1, dim2=2).std()) / sigma - 1) < 0.1
    assert abs(float(torch.stack([n.count - sums.count for n in noisy]).std()) / sigma - 1) < 0.25
    large = released(sums, 900.0, 0)
    assert torch.linalg.eigvalsh(large.gram).min() > -1e-6 * abs(large.gram).max()
    assert (large.count >= 0).all()
    assert (large.by_class.norm(dim=1) <= large.count + 1e-9).all()
    assert torch.equal(released(sums, 0.5, 3).gram, released(sums, 0.5, 3).gram)


def test_one_row_moves_the_sums_by_no_more_than_the_sensitivity():
    x, y = torch.randn(20, 7), torch.arange(20) % 3
    whole, less = sums_of(x, y, 3), sums_of(x[1:], y[1:], 3)
    gone = whole - less
    moved = (gone.count**2).sum() + (gone.by_class**2).sum() + (gone.gram**2).sum()
    assert float(moved) ** 0.5 <= SENSITIVITY + 1e-9


@pytest.mark.parametrize("clip", [1e-3, 1.0, 30.0, 1e9])
def test_clipped_sums_are_no_longer_than_clip_and_keep_their_means(clip):
    sums = sums_of(torch.randn(60, 9), torch.arange(60) % 4, 5)
    short = clipped_sums(sums, clip)
    length = float((short.count**2).sum() + (short.by_class**2).sum() + (short.gram**2).sum())
    assert length**0.5 <= clip * (1 + 1e-12)
    scale = float(short.count.sum() / sums.count.sum())
    assert (scale == 1) == (clip == 1e9)
    for name in ("count", "by_class", "gram"):
        torch.testing.assert_close(getattr(short, name), scale * getattr(sums, name))


def test_clip_bounds_what_one_client_of_many_rows_weighs():
    """As a twin with scaled rows: row weights min(1, clip / length) of their client."""
    table = small(rows=(200, 40, 40))
    plan, cached, folds = folds_of(
        table, solver="ridge", shape=0.1, strength=1.0, clip=20.0, tune_on="validation"
    )
    x = normalize(cached.features.double(), dim=1).numpy()
    gram, by_class = 0.0, 0.0
    for client in plan.folds[0].clients:
        own, y = x[client.train], np.eye(4)[table.labels[client.train]]
        parts = y.sum(0), y.T @ own, own.T @ own
        weight = min(1.0, 20.0 / np.sqrt(sum((part**2).sum() for part in parts)))
        by_class, gram = by_class + weight * parts[1], gram + weight * parts[2]
    width = len(gram)
    added = np.linalg.solve(gram + 0.1 * np.trace(gram) / width * np.eye(width), by_class.T).T
    ref = cached.unit_text.double().numpy() + added
    row = folds[0].closed_form.row.numpy()[: ref.size].reshape(ref.shape)
    cosines = (row * ref).sum(1) / np.linalg.norm(row, axis=1) / np.linalg.norm(ref, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_epsilon_with_clip_is_of_clients_and_says_so(tmp_path):
    need("dp_accounting")
    settings = {"method": "closed-form", "noise": 2.0, "tune_on": "validation"}
    rows, clients = (
        run(small(), tmp_path / str(clip), config(**settings, clip=clip))["privacy"]
        for clip in (0.0, 5.0)
    )
    assert rows["epsilon"] == clients["epsilon"]
    assert "one row more" in rows["note"] and "one client more" in clients["note"]


def test_epsilon_counts_one_release(tmp_path):
    need("dp_accounting")
    document = run(small(), tmp_path, config(method="closed-form", noise=2.0, rounds=200))
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    expected = from_gaussian_mechanism(2.0).get_epsilon_for_delta(1e-5)
    assert abs(document["privacy"]["epsilon"] / expected - 1) < 0.02
