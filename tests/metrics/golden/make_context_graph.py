"""Asks NetworkX as MetaShift's program does: writes context_graph.json, of small connected graphs.

    pip install networkx==3.6.1
    python tests/metrics/golden/make_context_graph.py

Each case: the weights, the distances of the first node from all in five dimensions, communities.
"""

import json
import pathlib

import networkx
import networkx.algorithms.community as community
import numpy as np


def partition(graph: networkx.Graph, order: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The communities, found with the nodes in another order."""
    back = dict(enumerate(order.tolist()))
    other = networkx.relabel_nodes(graph, {old: new for new, old in back.items()})
    ordered = networkx.Graph()
    ordered.add_nodes_from(sorted(other))
    ordered.add_edges_from(other.edges(data=True))
    groups = community.greedy_modularity_communities(ordered)
    return tuple(sorted(tuple(sorted(back[i] for i in group)) for group in groups))


def main() -> None:
    rng, cases = np.random.default_rng(0), []
    while len(cases) < 12:
        size = int(rng.integers(7, 15))
        weights = np.triu(rng.uniform(0, 0.6, (size, size)), 1).round(3)
        weights[weights < rng.uniform(0.1, 0.5)] = 0
        weights += weights.T
        graph = networkx.from_numpy_array(weights)
        if not networkx.is_connected(graph):
            continue  # the eigenvectors of several zeros are the solver's choice
        if len({partition(graph, rng.permutation(size)) for _ in range(20)}) > 1:
            continue  # equal gains are joined in the order of the nodes
        places = networkx.spectral_layout(graph, dim=5)
        far = [float(np.linalg.norm(places[0] - places[i])) for i in range(size)]
        found = partition(graph, np.arange(size))
        cases.append(json.dumps([weights.tolist(), far, found]))
    path = pathlib.Path(__file__).parent / "context_graph.json"
    path.write_text("[\n" + ",\n".join(cases) + "\n]\n")


if __name__ == "__main__":
    main()
