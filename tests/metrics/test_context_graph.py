"""The meta-graph, its distances and communities equal NetworkX' (golden/make_context_graph.py)."""

import json
import pathlib

import numpy as np
import pytest

from big_mm.metrics import context_graph
from big_mm.spec import UserError

CASES = json.loads((pathlib.Path(__file__).parent / "golden" / "context_graph.json").read_text())


@pytest.mark.parametrize("weights, far, groups", CASES)
def test_distances_and_communities_are_those_of_the_program(weights, far, groups):
    weights = np.array(weights)
    places = context_graph.spectral(weights)
    np.testing.assert_allclose(np.linalg.norm(places - places[0], axis=1), far, atol=1e-12)
    assert sorted(context_graph.communities(weights)) == groups
    assert not context_graph.parts(weights).any()


def test_overlap_is_a_share_of_the_smaller_set():
    sets = ["abcdefghij", "ab", "cxyz", "jklmno"]
    weights = context_graph.overlap(sets)
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 1
    expected[0, 2] = expected[2, 0] = 1 / 4
    np.testing.assert_array_equal(weights, expected)  # 1 / 6 is too little
    assert context_graph.overlap(sets, 0.1)[0, 3] == 1 / 6


def test_a_chain_is_a_line():
    """Neighbours are nearer than the sets behind them, and the communities are of neighbours."""
    weights = np.eye(6, k=1) + np.eye(6, k=-1)
    places = context_graph.spectral(weights, 1)[:, 0]
    assert (np.diff(places) > 0).all() or (np.diff(places) < 0).all()
    assert context_graph.communities(weights) == [[0, 1], [2, 3], [4, 5]]


def test_odd_graphs():
    apart = np.zeros((5, 5))
    apart[0, 1] = apart[1, 0] = apart[3, 4] = apart[4, 3] = 0.5
    assert context_graph.parts(apart).tolist() == [0, 0, 1, 2, 2]
    assert context_graph.communities(apart) == [[0, 1], [3, 4], [2]]
    assert context_graph.communities(np.zeros((3, 3))) == [[0], [1], [2]]
    with pytest.raises(UserError, match="4 sets are all equally far apart in 3 dimensions"):
        context_graph.spectral(np.ones((4, 4)), 3)
