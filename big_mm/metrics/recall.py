"""Which gallery items come first for a query, and how often a right one is among them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from big_mm.spec import UserError

_INDEX_BITS = 31
_INDEX_MASK = (1 << _INDEX_BITS) - 1


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The first k gallery items of each query, best first."""

    indices: Int[np.ndarray, "query k"]
    right: Bool[np.ndarray, "query k"]

    def recall(self, k: int) -> float:
        """Share of queries with a right item among the first k (not the share of right items)."""
        return float(self.right[:, :k].any(axis=1).mean())


def rank(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    query_ids: Int[np.ndarray, " query"],
    item_ids: Int[np.ndarray, " item"],
    k: int = 10,
    chunk: int = 2048,
) -> Ranking:
    """The k gallery items with the largest inner product for each query; equal ids are right.

    Exact for any size: similarities exist only in tiles of chunk x chunk, and only the best k items
    a query are kept between tiles. Ties are resolved against the model: among equal scores wrong
    items come first, then the smaller index, so that a collapsed model scores 0 and the result
    depends neither on the tiling nor on sorting. Products are taken in float64 and compared as
    float32, so that equal vectors tie wherever they stand in a matrix product.

    Raises:
      UserError: an embedding is not finite, as those of a diverged model.
      ValueError: a query has no right item.
    """
    for name, vectors in (("query", queries), ("gallery", gallery)):
        if not np.isfinite(vectors).all():
            raise UserError(f"{name} embeddings are not finite: the model has diverged")
    if not (present := np.isin(query_ids, item_ids)).all():
        raise ValueError(f"query {int(np.argmin(present))} has no right item in the gallery")
    if len(gallery) > _INDEX_MASK:
        raise ValueError(f"a gallery of {len(gallery)} items exceeds {_INDEX_MASK}")
    k = min(k, len(gallery))
    gallery = gallery.astype(np.float64)
    indices = np.empty((len(queries), k), np.int64)
    right = np.empty((len(queries), k), bool)
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        query = queries[rows].astype(np.float64)
        best = np.empty((len(query), 0), np.int64)
        for offset in range(0, len(gallery), chunk):
            columns = slice(offset, offset + chunk)
            scores = (query @ gallery[columns].T).astype(np.float32)
            wrong = query_ids[rows, None] != item_ids[None, columns]
            keys = np.concatenate([best, _keys(scores, wrong, offset)], axis=1)
            best = np.partition(keys, -k, axis=1)[:, -k:] if keys.shape[1] > k else keys
        indices[rows] = _INDEX_MASK - (np.sort(best, axis=1)[:, ::-1] & _INDEX_MASK)
        right[rows] = query_ids[rows, None] == item_ids[indices[rows]]
    return Ranking(indices, right)


def chance(
    query_ids: Int[np.ndarray, " query"], item_ids: Int[np.ndarray, " item"], k: int
) -> float:
    """Recall at k of a random order, exactly: 1 - C(n - r, k) / C(n, k), mean over queries."""
    items = len(item_ids)
    ids, counts = np.unique(item_ids, return_counts=True)
    right = counts[np.searchsorted(ids, query_ids)]
    misses = np.ones(len(query_ids))
    for drawn in range(min(k, items)):
        misses *= np.maximum(items - right - drawn, 0) / (items - drawn)
    return float(1 - misses.mean())


def recalls(ranking: Ranking, ks: Sequence[int]) -> dict[str, float]:
    """{"r@1": ..., "r@5": ...}."""
    return {f"r@{k}": ranking.recall(k) for k in ks}


def _keys(
    scores: Float[np.ndarray, "query item"], wrong: Bool[np.ndarray, "query item"], offset: int
) -> Int[np.ndarray, "query item"]:
    """Distinct integers in the order of (score, wrong first, smaller index first).

    The bits of a float32 order like integers once the negative half is flipped; below the 32 bits
    of the score come one bit for wrong and 31 bits for the index.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 turns -0 into 0
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    index = _INDEX_MASK - np.arange(offset, offset + scores.shape[1], dtype=np.int64)
    return (ordered << 32) | (wrong.astype(np.int64) << _INDEX_BITS) | index
