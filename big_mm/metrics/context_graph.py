"""How sets of images overlap, and how far apart that puts them (MetaShift, arXiv:2202.06523)."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csgraph

from big_mm.spec import UserError


def overlap(sets: Sequence[Collection[str]], least: float = 0.2) -> Float[np.ndarray, "set set"]:
    """The weights of the meta-graph's edges: the overlap coefficient |A and B| / min(|A|, |B|); 0
    where it is below `least`, and on the diagonal.
    """
    weights = np.zeros((len(sets), len(sets)))
    for i, first in enumerate(map(set, sets)):
        for j, second in enumerate(sets[:i]):
            shared = len(first.intersection(second)) / min(len(first), len(second))
            weights[i, j] = weights[j, i] = shared if shared >= least else 0.0
    return weights


def spectral(
    weights: Float[np.ndarray, "set set"], dimensions: int = 5
) -> Float[np.ndarray, "set dimension"]:
    """Positions whose Euclidean distances are the paper's: the eigenvectors of the graph's
    Laplacian, of the smallest eigenvalues but the first, centred, the largest coordinate 1
    (NetworkX' spectral_layout, which the program calls with five dimensions).

    Equal eigenvalues leave their eigenvectors to the solver: of a graph in several parts, which has
    several zeros, the distances mean nothing (take each of `parts` alone).

    Raises:
      UserError: no more sets than dimensions and one, which are all equally far from one another.
    """
    if len(weights) < dimensions + 2:
        raise UserError(
            f"{len(weights)} sets are all equally far apart in {dimensions} dimensions: take fewer "
            "dimensions or more sets"
        )
    laplacian = np.diag(weights.sum(axis=1)) - weights
    positions = np.linalg.eigh(laplacian)[1][:, 1 : dimensions + 1]
    positions = positions - positions.mean(axis=0)
    return positions / np.abs(positions).max()


def parts(weights: Float[np.ndarray, "set set"]) -> Int[np.ndarray, " set"]:
    """The number of the connected part of each set."""
    return csgraph.connected_components(weights > 0, directed=False)[1].astype(np.int64)


def communities(weights: Float[np.ndarray, "set set"]) -> list[list[int]]:
    """The sets in groups of many edges inside and few outside, the largest group first.

    Greedy modularity of the edges without their weights, as the program calls NetworkX (Clauset,
    Newman & Moore 2004): the pair whose union gains most is joined until none gains; of equal ones
    the first.
    """
    groups = [[i] for i in range(len(weights))]
    edges = (weights > 0).astype(np.float64)
    if not edges.any():
        return groups
    shares = edges / edges.sum()
    while len(groups) > 1:
        ends = shares.sum(axis=1)
        # Rounded, so that equal gains are equal in whatever order they were summed.
        gains = np.where(shares > 0, (shares - np.outer(ends, ends)).round(12), -np.inf)
        gains[np.tril_indices(len(groups))] = -np.inf
        first, second = np.unravel_index(gains.argmax(), gains.shape)
        if gains[first, second] < 0:
            break
        groups[second] += groups[first]
        del groups[first]
        shares[second] += shares[first]
        shares[:, second] += shares[:, first]
        shares = np.delete(np.delete(shares, first, axis=0), first, axis=1)
    return sorted((sorted(group) for group in groups), key=len, reverse=True)
