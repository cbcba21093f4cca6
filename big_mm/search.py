"""Exact nearest neighbours on the devices: the ranking of `metrics.recall`, only faster.

The devices propose, the host decides. The gallery is spread over all devices of the mesh; each
keeps the best candidates of every query in float32, tile after tile, so that no matrix of
similarities exists. The host scores the candidates in float64 and sorts them. A query whose order
could depend on a candidate that float32 left out (the last one is within the rounding error) is
ranked by the host alone; so the result is `recall.rank`'s on any backend and number of devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from big_mm import mesh as mesh_lib
from big_mm.metrics import recall
from big_mm.metrics.recall import Ranking, Relevance

# Candidates beyond k: neighbours that float32 may exchange with the k-th.
_SLACK = 16
# Similarities at a time on a device, and vectors' components at a time on the host.
_TILE, _QUERIES = 2**14, 2**10
_HOST = 2**25


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


def top_k(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    k: int,
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, "query k"], Int[np.ndarray, "query k"]]:
    """The largest inner products in float32 and their items, best first.

    Of equal ones any may be left out; `rank` is the exact one. `k` is at most the gallery's size.
    """
    mesh = mesh or mesh_lib.MeshConfig().make()
    devices = mesh.size
    tile = min(_TILE, -(-len(gallery) // devices))
    padded = -(-len(gallery) // (devices * tile)) * devices * tile
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        begin, end, _ = index[0].indices(padded)
        rows = np.zeros((end - begin, gallery.shape[1]), np.float32)
        there = gallery[begin : min(end, len(gallery))]
        rows[: len(there)] = there
        return rows

    held = jax.make_array_from_callback((padded, gallery.shape[1]), spread, shard)
    size = min(_QUERIES, len(queries))
    program = _program(mesh, k, tile, len(gallery))
    found = []
    for start in range(0, len(queries), size):
        block = np.zeros((size, queries.shape[1]), np.float32)
        given = queries[start : start + size]
        block[: len(given)] = given
        everywhere = mesh_lib.replicated(mesh)
        placed = jax.make_array_from_callback(block.shape, everywhere, block.__getitem__)
        found.append(program(placed, held))
        if len(found) > 1:
            found[-2] = jax.device_get(found[-2])
    scores, items = (
        np.concatenate(x)[: len(queries)] for x in zip(*jax.device_get(found), strict=True)
    )
    return scores, items.astype(np.int64)


@functools.cache
def _program(mesh: Mesh, k: int, tile: int, items: int):
    """The compiled search over tiles of the devices' parts, joined."""

    def local(queries: Array, part: Array) -> tuple[Array, Array]:
        first = jax.lax.axis_index(mesh.axis_names) * part.shape[0]
        rows = len(queries)

        def step(best: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
            columns = jax.lax.dynamic_slice_in_dim(part, number * tile, tile)
            scores = jnp.matmul(queries, columns.T, precision="highest")
            index = first + number * tile + jnp.arange(tile, dtype=jnp.int32)
            scores = jnp.where(index < items, scores, -jnp.inf)
            values, places = jax.lax.top_k(scores, min(k, tile))
            return _merge(best, (values, index[places]), k), None

        start = jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32)
        best, _ = jax.lax.scan(step, start, jnp.arange(part.shape[0] // tile))
        values, index = (jax.lax.all_gather(x, mesh.axis_names) for x in best)
        flat = [jnp.moveaxis(x, 0, 1).reshape(rows, -1) for x in (values, index)]
        values, places = jax.lax.top_k(flat[0], k)
        return values, jnp.take_along_axis(flat[1], places, axis=1)

    everywhere, spread = PartitionSpec(), PartitionSpec(mesh.axis_names)
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, spread),
        out_specs=(everywhere, everywhere),
        check_vma=False,
    )
    return jax.jit(mapped)


def _merge(best: tuple[Array, Array], more: tuple[Array, Array], k: int) -> tuple[Array, Array]:
    values = jnp.concatenate([best[0], more[0]], axis=1)
    index = jnp.concatenate([best[1], more[1]], axis=1)
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
