"""Dual inverted softmax equals its definition, and takes planted hubs away."""

import numpy as np
import pytest

from big_mm.metrics import hubness, recall
from big_mm.metrics.recall import SameId


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def planted(rng, count=300, hubs=10, width=32):
    """Queries near their own item; all share a direction that the hubs have most of."""
    shared = np.random.default_rng(5).normal(size=width)
    own = rng.normal(size=(count, width))
    gallery = own.copy()
    gallery[:hubs] += 2.0 * shared
    queries = own + 0.9 * rng.normal(size=own.shape) + 0.8 * shared
    return unit(queries), unit(gallery)


def by_loops(queries, gallery, query_bank, gallery_bank, beta1, beta2):
    scores = np.empty((len(queries), len(gallery)))
    for i, q in enumerate(queries.astype(float)):
        for j, g in enumerate(gallery.astype(float)):
            first = np.exp(beta1 * q @ g) / np.exp(beta1 * query_bank.astype(float) @ g).sum()
            second = np.exp(beta2 * q @ g) / np.exp(beta2 * gallery_bank.astype(float) @ g).sum()
            scores[i, j] = first * second
    return scores


def biases(gallery, query_bank, gallery_bank, beta1, beta2):
    return np.stack(
        [hubness.bias(gallery, query_bank, beta1, 7), hubness.bias(gallery, gallery_bank, beta2)]
    )


def test_equals_the_definition():
    rng = np.random.default_rng(0)
    queries, gallery, first, second = (unit(rng.normal(size=(n, 8))) for n in (9, 20, 15, 12))
    expected = by_loops(queries, gallery, first, second, 20.0, 3.0)
    found = biases(gallery, first, second, 20.0, 3.0)
    longer = hubness.normalised(queries, gallery, found, 23.0)
    ours = 23.0 * (longer[0].astype(float) @ longer[1].T.astype(float))
    differ = ours - np.log(expected)
    np.testing.assert_allclose(differ, np.broadcast_to(differ[0, 0], differ.shape), atol=2e-5)


def test_no_overflow():
    gallery = unit(np.random.default_rng(1).normal(size=(5, 4)))
    assert np.isfinite(hubness.bias(gallery, gallery, 5000.0)).all()


def test_equal_column_sums_leave_the_ranking():
    rng = np.random.default_rng(2)
    queries, gallery = unit(rng.normal(size=(30, 8))), np.eye(8, dtype=np.float32)
    found = biases(gallery, gallery, gallery, 20.0, 3.0)
    relevance = SameId(np.arange(30) % 8, np.arange(8))
    plain = recall.rank(queries, gallery, relevance, 8)
    longer = hubness.normalised(queries, gallery, found, 23.0)
    np.testing.assert_array_equal(recall.rank(*longer, relevance, 8).indices, plain.indices)


def test_planted_hubs_lose_their_hold():
    rng = np.random.default_rng(3)
    queries, gallery = planted(rng)
    bank, _ = planted(rng)
    relevance = SameId(np.arange(300), np.arange(300))
    plain = recall.rank(queries, gallery, relevance)
    found = biases(gallery, bank, gallery, 20.0, 3.0)
    dual = recall.rank(*hubness.normalised(queries, gallery, found, 23.0), relevance)
    inverted = recall.rank(*hubness.normalised(queries, gallery, found[:1], 20.0), relevance)
    assert dual.recall(1) > plain.recall(1) and inverted.recall(1) > plain.recall(1)
    before, after = (hubness.skewness(r.indices, 300) for r in (plain, dual))
    assert after < before / 2


def test_inactive_queries_keep_their_ranking():
    rng = np.random.default_rng(4)
    queries, gallery = planted(rng)
    found = biases(gallery, queries, gallery, 20.0, 3.0)
    active = np.zeros((300, 2), bool)
    active[::3] = True
    relevance = SameId(np.arange(300), np.arange(300))
    plain = recall.rank(queries, gallery, relevance)
    some = recall.rank(*hubness.normalised(queries, gallery, found, 23.0, active), relevance)
    every = recall.rank(*hubness.normalised(queries, gallery, found, 23.0), relevance)
    np.testing.assert_array_equal(some.indices[1::3], plain.indices[1::3])
    np.testing.assert_array_equal(some.indices[::3], every.indices[::3])


def test_skewness_by_hand():
    assert hubness.skewness(np.array([[0, 1], [2, 3]]), 4) == 0
    counts = np.array([3.0, 0, 0])
    expected = ((counts - 1) ** 3).mean() / counts.std() ** 3
    assert hubness.skewness(np.array([[0], [0], [0]]), 3) == pytest.approx(expected)
