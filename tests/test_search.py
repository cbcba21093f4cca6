"""The search on devices is the host's ranking, whatever the devices, tiles and ties."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import search
from big_mm.mesh import MeshConfig, single_device_mesh
from big_mm.metrics import recall
from big_mm.metrics.recall import Pairs, SameId
from big_mm.spec import UserError


@pytest.fixture(autouse=True, params=[36, 240], ids=["narrow", "grouped"])
def small(monkeypatch, request):
    """Tiles and blocks far below the problems' sizes; in the wider ones groups are used."""
    tile = request.param
    monkeypatch.setattr(search, "_TILE", tile)
    monkeypatch.setattr(search, "_GROUP", 4)
    monkeypatch.setattr(search, "_QUERIES", 16)
    monkeypatch.setattr(search, "_HOST", 5000)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def equal(queries, gallery, relevance, k, mesh):
    ours = search.rank(queries, gallery, relevance, k, mesh)
    theirs = recall.rank(queries, gallery, relevance, k)
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_array_equal(ours.right, theirs.right)
    np.testing.assert_array_equal(ours.positives, theirs.positives)


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2, "tensor": 2}, None], ids=str)
@pytest.mark.parametrize("k", [1, 10])
def test_equals_the_host(mesh, k):
    rng = np.random.default_rng(0)
    queries, gallery = (unit(rng.normal(size=(n, 24))) for n in (50, 701))
    made = single_device_mesh() if mesh is None else MeshConfig(**mesh).make()
    equal(queries, gallery, SameId(np.arange(50), np.arange(701) % 50), k, made)


def test_ties_and_duplicates_count_against_the_model():
    rng = np.random.default_rng(1)
    distinct = unit(rng.normal(size=(9, 16)))
    gallery = distinct[rng.integers(9, size=600)]
    equal(distinct, gallery, SameId(np.arange(9), np.arange(600) % 9), 10, None)
    collapsed = np.ones((40, 16), np.float32) / 4
    ranking = search.rank(collapsed, collapsed, SameId(np.arange(40), np.arange(40)), 5)
    assert ranking.recall(5) == 0


def test_neighbours_that_float32_cannot_tell_apart():
    """Differences far below the rounding of a float32 product decide the order."""
    rng = np.random.default_rng(2)
    base = unit(rng.normal(size=(1, 300)))
    gallery = (base + rng.normal(size=(400, 300)) * 2e-8).astype(np.float32)
    relevance = Pairs(np.arange(30), np.arange(30) * 3, 30, 400)
    equal(unit(rng.normal(size=(30, 300))), gallery, relevance, 7, None)


@pytest.mark.parametrize("mesh", [{}, None], ids=str)
def test_ranks_are_those_of_the_whole_order(mesh):
    rng = np.random.default_rng(5)
    queries, gallery = (unit(rng.normal(size=(n, 24))) for n in (40, 301))
    relevance = Pairs(np.arange(80) % 40, rng.integers(301, size=80), 40, 301)
    made = single_device_mesh() if mesh is None else MeshConfig(**mesh).make()
    whole = recall.rank(queries, gallery, relevance, 301)
    for k in (1, 20):
        ranking = recall.rank(queries, gallery, relevance, k)
        found = search.ranks(queries, gallery, relevance, ranking, made)
        np.testing.assert_array_equal(found, 1 + whole.right.argmax(axis=1))


def test_only_doubtful_queries_are_the_hosts(monkeypatch):
    rng = np.random.default_rng(3)
    gallery = unit(rng.normal(size=(500, 32)))
    gallery[100:200] = gallery[100]
    seen = []
    host = recall.rank
    monkeypatch.setattr(recall, "rank", lambda q, *rest: seen.append(len(q)) or host(q, *rest))
    search.rank(gallery[95:101], gallery, SameId(np.arange(6), np.arange(500) % 6), 3)
    assert seen == [1]


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2, "tensor": 2}, None], ids=str)
def test_any_score_is_ranked_as_its_whole_matrix(mesh):
    """Late interaction of token sequences, among them equal ones."""
    rng = np.random.default_rng(3)
    queries = {"tokens": rng.integers(-2, 3, size=(50, 3, 2)).astype(np.float32)}
    gallery = {"tokens": rng.integers(-2, 3, size=(701, 4, 2)).astype(np.float32)}

    def score(queries, items):
        pairs = jnp.einsum("qad,ibd->qiab", queries["tokens"], items["tokens"])
        return pairs.max(axis=3).sum(axis=2)

    relevance = SameId(np.arange(50), np.arange(701) % 50)
    made = single_device_mesh() if mesh is None else MeshConfig(**mesh).make()
    ranking, first = search.rank_by(score, queries, gallery, relevance, 9, made, tile=37)
    whole = np.asarray(score(queries, gallery))
    right = relevance.tile(slice(0, 50), slice(0, 701))
    for row in range(50):
        order = sorted(range(701), key=lambda i: (-whole[row, i], right[row, i], i))
        assert ranking.indices[row].tolist() == order[:9]
        assert first[row] == 1 + next(p for p, i in enumerate(order) if right[row, i])
    np.testing.assert_array_equal(ranking.right, relevance.of(ranking.indices))


def test_a_diverged_model_has_no_ranking():
    vectors, relevance = np.full((3, 2), np.nan), SameId(np.arange(3), np.arange(3))
    with pytest.raises(UserError, match="diverged"):
        search.rank_by(lambda q, i: q @ i.T, vectors, vectors, relevance)
    with pytest.raises(ValueError, match="query 2 has no right item"):
        search.rank_by(
            lambda q, i: q @ i.T, vectors, vectors[:2], SameId(np.arange(3), np.arange(2))
        )
