"""The search on devices is the host's ranking, whatever the devices, tiles and ties."""

import numpy as np
import pytest

from big_mm import search
from big_mm.mesh import MeshConfig, single_device_mesh
from big_mm.metrics import recall
from big_mm.metrics.recall import Pairs, SameId


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
