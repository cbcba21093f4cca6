"""Rankings equal a full sort; ties, tiles and several right items change nothing."""

import fractions
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from big_mm.metrics import recall
from big_mm.metrics.recall import Pairs, Ranking, SameId
from big_mm.spec import UserError


def brute_force(queries, gallery, query_ids, item_ids, k):
    """A full sort by (score, wrong first, index)."""
    rows = []
    for query, query_id in zip(queries, query_ids, strict=True):
        scores = [np.float32(np.dot(query.astype(float), item)) for item in gallery.astype(float)]
        order = sorted(range(len(gallery)), key=lambda i: (-scores[i], item_ids[i] == query_id, i))
        rows.append(order[:k])
    return np.array(rows)


@st.composite
def galleries(draw):
    """Few small integers as coordinates, so that ties are frequent."""
    items, queries = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    coordinates = st.integers(-2, 2)
    make = lambda n: np.array(  # noqa: E731
        draw(st.lists(st.tuples(coordinates, coordinates), min_size=n, max_size=n)), np.float32
    )
    item_ids = np.array(draw(st.lists(st.integers(0, 4), min_size=items, max_size=items)))
    query_ids = np.array([item_ids[draw(st.integers(0, items - 1))] for _ in range(queries)])
    return make(queries), make(items), query_ids, item_ids


@hypothesis.given(galleries(), st.integers(1, 15), st.integers(1, 5))
def test_equals_a_full_sort_for_any_tiling(problem, k, chunk):
    queries, gallery, query_ids, item_ids = problem
    ranking = recall.rank(queries, gallery, SameId(query_ids, item_ids), k, chunk)
    expected = brute_force(*problem, k)
    np.testing.assert_array_equal(ranking.indices, expected)
    np.testing.assert_array_equal(ranking.right, item_ids[expected] == query_ids[:, None])
    for depth in range(1, k + 1):
        hits = [
            query_id in item_ids[row[:depth]]
            for query_id, row in zip(query_ids, expected, strict=True)
        ]
        assert ranking.recall(depth) == np.mean(hits)


def test_a_collapsed_model_scores_zero():
    same = np.ones((20, 4), np.float32) / 2
    ranking = recall.rank(same, same, SameId(np.arange(20), np.arange(20)), k=10)
    assert ranking.recall(10) == 0


def test_equal_vectors_tie_wherever_they_stand():
    """A float32 matrix product may round equal columns differently; the ranking must not."""
    rng = np.random.default_rng(0)
    vector = rng.normal(size=257).astype(np.float32)
    gallery = np.tile(vector / np.linalg.norm(vector), (101, 1))
    query = rng.normal(size=(3, 257)).astype(np.float32)
    ids = np.arange(101)
    for query_id in (0, 50, 100):
        ranking = recall.rank(query, gallery, SameId(np.full(3, query_id), ids), k=100)
        assert (ranking.indices == np.delete(ids, query_id)).all()


def test_large_galleries_are_ranked_in_tiles():
    rng = np.random.default_rng(1)
    queries, gallery = (rng.normal(size=(n, 16)).astype(np.float32) for n in (50, 3000))
    ids = rng.integers(0, 3000, 50)
    tiled = recall.rank(queries, gallery, SameId(ids, np.arange(3000)), k=10, chunk=97)
    whole = np.argsort(-(queries.astype(float) @ gallery.T.astype(float)), axis=1)[:, :10]
    np.testing.assert_array_equal(tiled.indices, whole)


def test_any_of_several_right_items_is_a_hit():
    gallery = np.eye(4, dtype=np.float32)
    ranking = recall.rank(gallery[3:], gallery, SameId(np.array([7]), np.array([7, 1, 1, 7])), k=1)
    assert ranking.recall(1) == 1.0 and ranking.indices[0, 0] == 3


@hypothesis.given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 7))
def test_chance_is_the_mean_over_all_orders(item_ids, k):
    item_ids = np.array(item_ids)
    query_ids = np.unique(item_ids)
    orders = list(itertools.permutations(range(len(item_ids))))
    hits = sum(q in item_ids[list(order[:k])] for q in query_ids for order in orders)
    expected = fractions.Fraction(hits, len(orders) * len(query_ids))
    assert recall.chance(SameId(query_ids, item_ids), len(item_ids), k) == pytest.approx(
        float(expected)
    )


@hypothesis.given(galleries(), st.integers(1, 15), st.integers(1, 5))
def test_pairs_are_as_ids(problem, k, chunk):
    queries, gallery, query_ids, item_ids = problem
    by_id = SameId(query_ids, item_ids)
    query, item = np.nonzero(query_ids[:, None] == item_ids)
    twice = np.concatenate([query, query]), np.concatenate([item, item])
    pairs = Pairs(*twice, len(queries), len(gallery))
    ours, theirs = (recall.rank(queries, gallery, r, k, chunk) for r in (pairs, by_id))
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_array_equal(ours.right, theirs.right)
    np.testing.assert_array_equal(ours.positives, theirs.positives)
    assert sorted(zip(*by_id.pairs(), strict=True)) == sorted(zip(query, item, strict=True))
    rows = np.arange(len(queries))[::-2]
    for relevance in (by_id, pairs):
        some = recall.rank(queries[rows], gallery, relevance.take(rows), k, chunk)
        np.testing.assert_array_equal(some.right, ours.right[rows])


def test_ranked_lists_score_by_hand():
    """Right items at ranks 1 and 3 of four; at rank 2 of one; nowhere, of two."""
    right = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    ranking = Ranking(np.zeros(right.shape, int), right, np.array([4, 1, 2]))
    np.testing.assert_allclose(ranking.average_precision(4), [(1 + 2 / 3) / 4, 1 / 2, 0])
    np.testing.assert_allclose(ranking.average_precision(2), [1 / 2, 1 / 2, 0])
    discounts = 1 / np.log2([2, 3, 4, 5])
    best = discounts.sum(), discounts[0]
    expected = (discounts[0] + discounts[2]) / best[0], discounts[1] / best[1], 0
    np.testing.assert_allclose(ranking.ndcg(4), expected)
    np.testing.assert_allclose(ranking.reciprocal_rank(), [1, 1 / 2, 0])
    np.testing.assert_allclose(ranking.hits(1), [1, 0, 0])


def test_bad_input_is_named():
    unit = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="query 1 has no right item"):
        recall.rank(unit, unit, SameId(np.array([0, 5]), np.array([0, 1])))
    with pytest.raises(UserError, match="gallery embeddings are not finite"):
        recall.rank(unit, unit * np.nan, SameId(np.array([0, 1]), np.array([0, 1])))
