"""Exact nearest neighbours on the devices: the ranking of `metrics.recall`, only faster.

The devices propose, the host decides. The gallery is spread over all devices of the mesh; each
keeps the best candidates of every query in float32, tile after tile, so that no matrix of
similarities exists. The host scores the candidates in float64 and sorts them. A query whose order
could depend on a candidate that float32 left out (the last one is within the rounding error) is
ranked by the host alone; so the result is `recall.rank`'s on any backend and number of devices.

`rank_by` does the same for similarities that are no inner product of two vectors.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from big_mm import mesh as mesh_lib
from big_mm.metrics import recall
from big_mm.metrics.recall import Ranking, Relevance
from big_mm.spec import UserError

# Candidates beyond k: neighbours that float32 may exchange with the k-th.
_SLACK = 16
# Similarities at a time on a device, and vectors' components at a time on the host.
_TILE, _QUERIES = 2**14, 2**10
_HOST = 2**25
# (some queries, some items) -> the score of each pair, which depends on that pair alone.
Score = Callable[[PyTree, PyTree], Float[Array, "query item"]]

# Columns of which one maximum is taken before the largest are sought.
_GROUP = 64


def rank(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    relevance: Relevance,
    k: int = 10,
    mesh: Mesh | None = None,
) -> Ranking:
    """As `recall.rank`; every process of a run gives the same arrays and gets the same result.

    Args:
      mesh: the devices to use; default: all.

    Raises:
      UserError, ValueError: as `recall.rank`.
    """
    positives = recall.check(queries, gallery, relevance)
    wanted = min(k, len(gallery))
    if len(gallery) <= wanted + _SLACK:
        return recall.rank(queries, gallery, relevance, k)
    scores, candidates = top_k(queries, gallery, wanted + _SLACK, mesh)
    indices = np.empty((len(queries), wanted), np.int64)
    doubtful = np.empty(len(queries), bool)
    right = relevance.of(candidates)
    step = max(1, _HOST // (candidates.shape[1] * gallery.shape[1]))
    error = rounding(queries, gallery)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        near = gallery[candidates[rows]].astype(np.float64)
        exact = (near @ queries[rows].astype(np.float64)[..., None])[..., 0]
        wrong = ~right[rows]
        order = np.sort(recall.keys(exact.astype(np.float32), wrong, candidates[rows]), axis=1)
        indices[rows] = recall.items_of(order[:, ::-1][:, :wanted])
        kth = np.sort(exact, axis=1)[:, -wanted]
        doubtful[rows] = kth <= scores[rows, -1] + error[rows]
    for row in np.array_split(np.flatnonzero(doubtful), -(-doubtful.sum() // _QUERIES) or 1):
        if len(row):
            indices[row] = recall.rank(queries[row], gallery, relevance.take(row), k).indices
    return Ranking(indices, relevance.of(indices), positives)


def rank_by(
    score: Score,
    queries: PyTree,
    gallery: PyTree,
    relevance: Relevance,
    k: int = 10,
    mesh: Mesh | None = None,
    tile: int = 64,
) -> tuple[Ranking, Int[np.ndarray, " query"]]:
    """The k items of the highest score of each query, and the rank, from 1, of its first right one.

    The devices share the queries; equal scores are ordered as `recall.rank` orders them.

    Args:
      queries, gallery: arrays of one row a query, and one an item.
      tile: queries on a device, and items, whose scores are computed at once.

    Raises:
      UserError: a score is not finite, as those of a diverged model.
      ValueError: a query has no right item.
    """
    mesh = mesh or mesh_lib.MeshConfig().make()
    count, items = (len(jax.tree.leaves(side)[0]) for side in (queries, gallery))
    positives, k = recall.check_relevance(relevance, items), min(k, items)
    indices, first = np.empty((count, k), np.int64), np.empty(count, np.int64)
    step = tile * mesh_lib.batch_devices(mesh)
    spread, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    program = jax.jit(score, out_shardings=everywhere)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        asked = _block(queries, rows, step, spread)
        scores = []
        for offset in range(0, items, tile):
            columns = slice(offset, min(offset + tile, items))
            found = program(asked, _block(gallery, columns, tile, everywhere))
            scores.append(found[: rows.stop - start, : columns.stop - offset])
        found = np.concatenate(jax.device_get(scores), axis=1)
        if not np.isfinite(found).all():
            raise UserError("similarities are not finite: the model has diverged")
        right = relevance.tile(rows, slice(0, items))
        keys = recall.keys(found, ~right, np.arange(items))
        lowest = np.iinfo(np.int64).min
        ahead = keys > keys.max(axis=1, where=right, initial=lowest, keepdims=True)
        first[rows] = 1 + ahead.sum(axis=1)
        best = np.sort(np.partition(keys, -k, axis=1)[:, -k:], axis=1)
        indices[rows] = recall.items_of(best[:, ::-1])
    return Ranking(indices, relevance.of(indices), positives), first


def _block(side: PyTree, rows: slice, count: int, sharding: jax.sharding.Sharding) -> PyTree:
    """Some rows on the devices, and the first one again up to `count`."""
    numbers = np.arange(rows.start, rows.start + count)
    numbers[numbers >= rows.stop] = rows.start

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            (count, *x.shape[1:]), sharding, lambda index: x[numbers[index[0]]]
        )

    return jax.tree.map(place, side)


def nearest(
    queries: Float[np.ndarray, "query width"], gallery: Float[np.ndarray, "item width"]
) -> Int[np.ndarray, " query"]:
    """The item with the largest inner product of each query, in float32."""
    return top_k(queries, gallery, 1)[1][:, 0]


def ranks(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    relevance: Relevance,
    ranking: Ranking,
    mesh: Mesh | None = None,
) -> Int[np.ndarray, " query"]:
    """The rank, from 1, of the first right item of each query.

    Beyond the depth of the ranking it is counted in float32, what is equal to rounding before the
    right item.
    """
    found = 1 + ranking.right.argmax(axis=1)
    missed = np.flatnonzero(~ranking.right.any(axis=1))
    if not len(missed):
        return found
    asked = queries[missed]
    query, item = relevance.take(missed).pairs()
    scores = np.empty(len(query))
    for start in range(0, len(query), _HOST // gallery.shape[1]):
        rows = slice(start, start + _HOST // gallery.shape[1])
        left, right = asked[query[rows]].astype(np.float64), gallery[item[rows]]
        scores[rows] = np.einsum("pd,pd->p", left, right.astype(np.float64))
    best = np.full(len(missed), -np.inf)
    np.maximum.at(best, query, scores)
    threshold = best - rounding(asked, gallery)
    right = np.bincount(query, scores >= threshold[query], minlength=len(missed))
    before = _over_blocks(asked, gallery, mesh, 0, threshold.astype(np.float32))[0] - right
    found[missed] = np.maximum(before.astype(np.int64), ranking.indices.shape[1]) + 1
    return found


def top_k(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    k: int,
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, "query k"], Int[np.ndarray, "query k"]]:
    """The largest inner products in float32 and their items, best first.

    Of equal ones any may be left out; `rank` is the exact one. `k` is at most the gallery's size.
    """
    scores, items = _over_blocks(queries, gallery, mesh, k)
    return scores, items.astype(np.int64)


def _over_blocks(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    mesh: Mesh | None,
    k: int,
    thresholds: Float[np.ndarray, " query"] | None = None,
) -> tuple[np.ndarray, ...]:
    """Runs a program over blocks of queries against the gallery, spread over the devices."""
    mesh = mesh or mesh_lib.MeshConfig().make()
    tile = min(_TILE, -(-len(gallery) // (mesh.size * _GROUP)) * _GROUP)
    padded = -(-len(gallery) // (mesh.size * tile)) * mesh.size * tile

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        begin, end, _ = index[0].indices(padded)
        return _padded(gallery[begin : min(end, len(gallery))], end - begin)

    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    held = jax.make_array_from_callback((padded, gallery.shape[1]), spread, shard)
    size = min(_QUERIES, len(queries))
    inputs = [queries] if thresholds is None else [queries, thresholds]
    program = _program(mesh, k, tile, len(gallery))
    found = []
    for start in range(0, len(queries), size):
        blocks = [_padded(x[start : start + size], size) for x in inputs]
        everywhere = mesh_lib.replicated(mesh)
        placed = [jax.make_array_from_callback(b.shape, everywhere, b.__getitem__) for b in blocks]
        found.append(program(held, *placed))
        if len(found) > 1:
            found[-2] = jax.device_get(found[-2])
    joined = zip(*jax.device_get(found), strict=True)
    return tuple(np.concatenate(x)[: len(queries)] for x in joined)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros((count, *rows.shape[1:]), np.float32)
    out[: len(rows)] = rows
    return out


@functools.cache
def _program(mesh: Mesh, k: int, tile: int, items: int) -> Callable[..., tuple[Array, ...]]:
    """(gallery, queries) -> the k best; (gallery, queries, thresholds) -> how many reach them."""

    def tiles(part: Array, queries: Array) -> Callable[[Array], tuple[Array, Array]]:
        first = jax.lax.axis_index(mesh.axis_names) * part.shape[0]

        def scores(number: Array) -> tuple[Array, Array]:
            columns = jax.lax.dynamic_slice_in_dim(part, number * tile, tile)
            index = first + number * tile + jnp.arange(tile, dtype=jnp.int32)
            found = jnp.matmul(queries, columns.T, precision="highest")
            return jnp.where(index < items, found, -jnp.inf), index

        return scores

    def best(part: Array, queries: Array) -> tuple[Array, Array]:
        scores, rows = tiles(part, queries), len(queries)

        def step(best: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
            found, index = scores(number)
            values, places = _largest(found, min(k, tile))
            more = values, index[places]
            return _first(
                *(jnp.concatenate(x, axis=1) for x in zip(best, more, strict=True)), k
            ), None

        start = jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32)
        found, _ = jax.lax.scan(step, start, jnp.arange(part.shape[0] // tile))
        everyones = (jax.lax.all_gather(x, mesh.axis_names) for x in found)
        return _first(*(jnp.moveaxis(x, 0, 1).reshape(rows, -1) for x in everyones), k)

    def count(part: Array, queries: Array, thresholds: Array) -> tuple[Array]:
        scores = tiles(part, queries)

        def step(total: Array, number: Array) -> tuple[Array, None]:
            return total + (scores(number)[0] >= thresholds[:, None]).sum(axis=1), None

        start = jnp.zeros(len(queries), jnp.int32)
        total, _ = jax.lax.scan(step, start, jnp.arange(part.shape[0] // tile))
        return (jax.lax.psum(total, mesh.axis_names),)

    everywhere, spread = PartitionSpec(), PartitionSpec(mesh.axis_names)
    mapped = functools.partial(jax.shard_map, mesh=mesh, out_specs=everywhere, check_vma=False)
    if k:
        return jax.jit(mapped(best, in_specs=(spread, everywhere)))
    return jax.jit(mapped(count, in_specs=(spread, everywhere, everywhere)))


def _largest(scores: Array, k: int) -> tuple[Array, Array]:
    """`top_k` for many columns: the k largest are in the k groups with the largest maxima."""
    rows, columns = scores.shape
    groups = columns // _GROUP
    if columns % _GROUP or groups <= 2 * k:
        return tuple(jax.lax.top_k(scores, k))
    grouped = scores.reshape(rows, groups, _GROUP)
    _, chosen = jax.lax.top_k(grouped.max(axis=-1), k)
    held = jnp.take_along_axis(grouped, chosen[..., None], axis=1).reshape(rows, -1)
    values, places = jax.lax.top_k(held, k)
    group = jnp.take_along_axis(chosen, places // _GROUP, axis=1)
    return values, group * _GROUP + places % _GROUP


def _first(values: Array, index: Array, k: int) -> tuple[Array, Array]:
    values, places = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(index, places, axis=1)


def rounding(
    queries: Float[np.ndarray, "query width"], gallery: Float[np.ndarray, "item width"]
) -> Float[np.ndarray, " query"]:
    """A bound of the error of a float32 inner product (Higham 2002, section 3.1), and of comparing
    as float32 what was computed in float64.
    """
    unit = np.finfo(np.float32).eps / 2
    longest = np.sqrt(np.einsum("id,id->i", gallery, gallery, dtype=np.float64).max())
    length = np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64))
    return (gallery.shape[1] + 4) * unit * length * longest
