"""Which gallery items come first for a query, and how often a right one is among them."""

import abc
import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from big_mm.metrics.statistics import Values
from big_mm.spec import UserError

INDEX_BITS = 31
_INDEX_MASK = (1 << INDEX_BITS) - 1


class Relevance(abc.ABC):
    """Which gallery items are right for which query."""

    @abc.abstractmethod
    def tile(self, rows: slice, columns: slice) -> Bool[np.ndarray, "query item"]:
        """Of ranges of queries and items."""

    @abc.abstractmethod
    def of(self, indices: Int[np.ndarray, "query k"]) -> Bool[np.ndarray, "query k"]:
        """Of some items of each query."""

    @abc.abstractmethod
    def counts(self) -> Int[np.ndarray, " query"]:
        """The number of right items of each query."""

    @abc.abstractmethod
    def pairs(self) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
        """All right (query, item), by query."""

    @abc.abstractmethod
    def take(self, rows: Int[np.ndarray, " row"]) -> "Relevance":
        """The same for these queries only, in this order."""


@dataclasses.dataclass(frozen=True, eq=False)
class SameId(Relevance):
    """An item is right if it has the query's id."""

    query_ids: Int[np.ndarray, " query"]
    item_ids: Int[np.ndarray, " item"]

    def tile(self, rows: slice, columns: slice) -> Bool[np.ndarray, "query item"]:
        return self.query_ids[rows, None] == self.item_ids[None, columns]

    def of(self, indices: Int[np.ndarray, "query k"]) -> Bool[np.ndarray, "query k"]:
        return self.query_ids[:, None] == self.item_ids[indices]

    def counts(self) -> Int[np.ndarray, " query"]:
        ids, counts = np.unique(self.item_ids, return_counts=True)
        places = np.minimum(np.searchsorted(ids, self.query_ids), len(ids) - 1)
        return np.where(ids[places] == self.query_ids, counts[places], 0)

    def pairs(self) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
        order = np.argsort(self.item_ids, kind="stable")
        begin = np.searchsorted(self.item_ids[order], self.query_ids)
        counts = self.counts()
        query = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        return query, order[begin[query] + within]

    def take(self, rows: Int[np.ndarray, " row"]) -> "SameId":
        return SameId(self.query_ids[rows], self.item_ids)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs(Relevance):
    """Item `item[i]` is right for query `query[i]`, for every i; a query may come up often."""

    query: Int[np.ndarray, " pair"]
    item: Int[np.ndarray, " pair"]
    queries: int
    items: int

    def __post_init__(self) -> None:
        codes = np.unique(np.asarray(self.query, np.int64) * self.items + self.item)
        object.__setattr__(self, "query", codes // self.items)
        object.__setattr__(self, "item", codes % self.items)

    def tile(self, rows: slice, columns: slice) -> Bool[np.ndarray, "query item"]:
        first, last, _ = rows.indices(self.queries)
        left, right, _ = columns.indices(self.items)
        begin, end = np.searchsorted(self.query, [first, last])
        query, item = self.query[begin:end], self.item[begin:end]
        inside = (left <= item) & (item < right)
        out = np.zeros((last - first, right - left), bool)
        out[query[inside] - first, item[inside] - left] = True
        return out

    def of(self, indices: Int[np.ndarray, "query k"]) -> Bool[np.ndarray, "query k"]:
        first = np.arange(self.queries, dtype=np.int64)[:, None] * self.items
        return np.isin(first + indices, self.query.astype(np.int64) * self.items + self.item)

    def counts(self) -> Int[np.ndarray, " query"]:
        return np.bincount(self.query, minlength=self.queries)

    def pairs(self) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
        return self.query, self.item

    def take(self, rows: Int[np.ndarray, " row"]) -> "Pairs":
        begin, end = np.searchsorted(self.query, rows), np.searchsorted(self.query, rows, "right")
        query = np.repeat(np.arange(len(rows)), end - begin)
        item = np.concatenate([self.item[a:b] for a, b in zip(begin, end, strict=True)])
        return Pairs(query, item, len(rows), self.items)


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The first k gallery items of each query, best first, and how many right ones there are."""

    indices: Int[np.ndarray, "query k"]
    right: Bool[np.ndarray, "query k"]
    positives: Int[np.ndarray, " query"]

    def hits(self, k: int) -> Values:
        """1 for queries with a right item among the first k, else 0."""
        return self.right[:, :k].any(axis=1).astype(np.float64)

    def recall(self, k: int) -> float:
        """Share of queries with a right item among the first k (not the share of right items)."""
        return float(self.hits(k).mean())

    def average_precision(self, k: int) -> Values:
        """AP@k of each query: the precision at every right item among the first k, summed and
        divided by min(k, right items there are), as CIRCO (arXiv:2303.15247) and INQUIRE
        (arXiv:2411.02537) do. Right items that are missed count.
        """
        right = self.right[:, :k]
        precision = np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
        return (precision * right).sum(axis=1) / np.maximum(np.minimum(self.positives, k), 1)

    def ndcg(self, k: int) -> Values:
        """nDCG@k of each query, a right item's gain being 1."""
        gains = 1 / np.log2(np.arange(2, k + 2))
        best = np.cumsum(gains)[np.minimum(self.positives, k) - 1]
        return (self.right[:, :k] * gains[: self.right.shape[1]]).sum(axis=1) / best

    def reciprocal_rank(self) -> Values:
        """One over the rank of the first right item; 0 if it is not among the first k."""
        return np.where(self.right.any(axis=1), 1 / (1 + self.right.argmax(axis=1)), 0.0)


def rank(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    relevance: Relevance,
    k: int = 10,
    chunk: int = 2048,
) -> Ranking:
    """The k gallery items with the largest inner product for each query.

    Exact for any size: similarities exist only in tiles of chunk x chunk, and only the best k items
    a query are kept between tiles. Ties are resolved against the model: among equal scores wrong
    items come first, then the smaller index, so that a collapsed model scores 0 and the result
    depends neither on the tiling nor on sorting. Products are taken in float64 and compared as
    float32, so that equal vectors tie wherever they stand in a matrix product. `search.rank` is the
    same on accelerators.

    Raises:
      UserError: an embedding is not finite, as those of a diverged model.
      ValueError: a query has no right item.
    """
    positives = check(queries, gallery, relevance)
    k = min(k, len(gallery))
    indices = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        indices[rows] = _best(queries[rows], gallery, relevance, rows, k, chunk)
    return Ranking(indices, relevance.of(indices), positives)


def check(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    relevance: Relevance,
) -> Int[np.ndarray, " query"]:
    """The number of right items of each query. Raises as `rank` does."""
    for name, vectors in (("query", queries), ("gallery", gallery)):
        if not np.isfinite(vectors).all():
            raise UserError(f"{name} embeddings are not finite: the model has diverged")
    return check_relevance(relevance, len(gallery))


def check_relevance(relevance: Relevance, items: int) -> Int[np.ndarray, " query"]:
    """The number of right items of each query in a gallery of `items`.

    Raises:
      ValueError: a query has no right item, or there are too many items to number.
    """
    positives = relevance.counts()
    if not positives.all():
        raise ValueError(f"query {int(np.argmin(positives))} has no right item in the gallery")
    if items > _INDEX_MASK:
        raise ValueError(f"a gallery of {items} items exceeds {_INDEX_MASK}")
    return positives


def _best(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    relevance: Relevance,
    rows: slice,
    k: int,
    chunk: int,
) -> Int[np.ndarray, "query k"]:
    query = queries.astype(np.float64)
    best = np.empty((len(query), 0), np.int64)
    for offset in range(0, len(gallery), chunk):
        columns = slice(offset, offset + chunk)
        scores = (query @ gallery[columns].astype(np.float64).T).astype(np.float32)
        items = np.arange(offset, offset + scores.shape[1])
        found = keys(scores, ~relevance.tile(rows, columns), items)
        best = np.concatenate([best, found], axis=1)
        best = np.partition(best, -k, axis=1)[:, -k:] if best.shape[1] > k else best
    return items_of(np.sort(best, axis=1)[:, ::-1])


def chance(relevance: Relevance, items: int, k: int) -> float:
    """Recall at k of a random order, exactly: 1 - C(n - r, k) / C(n, k), mean over queries."""
    right = relevance.counts()
    misses = np.ones(len(right))
    for drawn in range(min(k, items)):
        misses *= np.maximum(items - right - drawn, 0) / (items - drawn)
    return float(1 - misses.mean())


def keys(
    scores: Float[np.ndarray, "query item"],
    wrong: Bool[np.ndarray, "query item"],
    items: Int[np.ndarray, "*query item"],
) -> Int[np.ndarray, "query item"]:
    """Distinct integers in the order of (score, wrong first, smaller index first).

    The bits of a float32 order like integers once the negative half is flipped; below the 32 bits
    of the score come one bit for wrong and 31 bits for the index.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 turns -0 into 0
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    return (ordered << 32) | (wrong.astype(np.int64) << INDEX_BITS) | (_INDEX_MASK - items)


def items_of(found: Int[np.ndarray, "query k"]) -> Int[np.ndarray, "query k"]:
    """The item numbers in `keys`."""
    return _INDEX_MASK - (found & _INDEX_MASK)
