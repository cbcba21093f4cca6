"""Ranking galleries for queries that have several right items, or an item to leave out."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from big_mm.spec import UserError

_CHUNK = 64


def nearest(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    candidates: Sequence[Int[np.ndarray, " candidates"]],
    right: Sequence[Sequence[int]],
    k: int,
) -> list[Int[np.ndarray, " k"]]:
    """The k candidates with the largest inner product for each query, best first.

    Candidates and right items are positions in the gallery. Equal scores count against the model:
    wrong items first, then the smaller position. Products are taken in float64 and compared as
    float32, as in `recall.rank`.

    Raises:
      UserError: an embedding is not finite, as those of a diverged model.
    """
    for name, vectors in (("query", queries), ("gallery", gallery)):
        if not np.isfinite(vectors).all():
            raise UserError(f"{name} embeddings are not finite: the model has diverged")
    gallery = gallery.astype(np.float64)
    found = []
    for start in range(0, len(queries), _CHUNK):
        rows = slice(start, start + _CHUNK)
        scores = (queries[rows].astype(np.float64) @ gallery.T).astype(np.float32)
        for row, among, good in zip(scores, candidates[rows], right[rows], strict=True):
            own = row[among]
            if len(among) > k:
                # All that tie with the k-th stay in until the rule for equals has been applied.
                kept = own >= np.partition(own, -k)[-k]
                among, own = among[kept], own[kept]
            order = np.lexsort((among, np.isin(among, list(good)), -own))
            found.append(among[order[:k]])
    return found
