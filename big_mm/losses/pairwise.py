"""Losses over all pairs of two batches of rows, without their matrix.

A loss gives the logits of a tile of pairs, and what to reduce of each pair (`Pairs`);
`reduce_pairs` reduces that over the columns of every row and over the rows of every column. What
the loss makes of the result is ordinary differentiable code on vectors.

Two reductions, for rows (for columns the same with i and j exchanged):
    L[i] = log sum_j exp a[i,j]         S[i] = sum_j b[i,j]
Forward, L is a running maximum and a sum relative to it, which can be joined over tiles and devices
in any order. Backward, with the gradient u[i] with respect to L[i], and w[i] to S[i],
    sum_i u[i] dL[i] + w[i] dS[i]  =  d sum_ij ( u[i] exp(a[i,j] - L[i]) + w[i] b[i,j] )
with L held constant on the right, since dL[i] = sum_j exp(a[i,j] - L[i]) da[i,j]. The right side is
a sum over pairs, so the differential of one tile is its share of all gradients. Only the vectors L
are kept from the forward pass: with B rows of D numbers it takes 2 B^2 D floating-point operations,
the backward pass 6 B^2 D, a third of them to compute the logits again. One tile serves both
directions.

Sources: Inf-CL (arXiv:2410.17243) for tiles and rings of the softmax, SigLIP (arXiv:2303.15343,
section 3.3) for rings of the sigmoid, DisCo-CLIP (arXiv:2304.08480) for gradients of others' rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from big_mm import mesh as mesh_lib
from big_mm.losses.exchange import Layout, Reduction, over_pairs

# Finite, so that a row without a valid column has finite gradients.
LOWEST = -1e30
NO_INDEX = jnp.iinfo(jnp.int32).max


class Rows(NamedTuple):
    """One side of the pairs.

    Attributes:
      values: float arrays, rows first; differentiated.
      labels: arrays, rows first; not differentiated.
      valid: false for rows that take part in no pair.
      index: the position of each row.
    """

    values: PyTree
    labels: PyTree
    valid: Bool[Array, " rows"]
    index: Int[Array, " rows"]

    @classmethod
    def of(cls, values: PyTree, labels: PyTree, valid: Bool[Array, " rows"]) -> "Rows":
        """All rows of a batch, in its order."""
        index = jnp.arange(len(valid), dtype=jnp.int32)
        return jax.tree.map(jnp.asarray, cls(values, labels, valid, index))


class Pairs(NamedTuple):
    """What is reduced of a tile of pairs.

    Attributes:
      scores: ranks the pairs, as a matrix product gives them: arithmetic behind it may be computed
        again, and rounded otherwise, where the largest one is looked for.
      exponents: reduced by a log-sum-exp, by name.
      terms: reduced by a sum, by name.
    """

    scores: Float[Array, "rows columns"]
    exponents: dict[str, Float[Array, "rows columns"]]
    terms: dict[str, Shaped[Array, "rows columns"]]


class Reduced(NamedTuple):
    """The same of each row, reduced over its valid columns; or of each column. Without meaning for
    rows that are not valid.

    Attributes:
      best: the index of the largest score, the first one if several are equal.
      exponents: log-sum-exps, by name.
      terms: sums, by name.
    """

    best: Int[Array, " rows"]
    exponents: dict[str, Float[Array, " rows"]]
    terms: dict[str, Float[Array, " rows"]]


# (shared, rows, columns) -> what is reduced over columns, and what over rows.
PairsFn = Callable[[Any, Rows, Rows], tuple[Pairs, Pairs]]


def reduce_pairs(
    pairs: PairsFn, shared: PyTree, left: Rows, right: Rows, *, exchange: str, tile: int
) -> tuple[Reduced, Reduced]:
    """Reduces what `pairs` says of a tile over all right rows, and over all left rows.

    Exact at every setting. `pairs` sees float32 values, and does not depend on which rows share a
    tile; it and its closure hold no traced arrays.

    Args:
      shared: float arrays that every tile sees, such as the scale; differentiated.
      exchange: "gather" or "ring": see `exchange`.
      tile: the most rows of either side in one tile. 0 with "gather" is the whole matrix, laid out
        by the compiler and differentiated as it stands, which is fastest where it fits.
    """
    layout = Layout(exchange, tile, mesh_lib.current())
    if exchange == "gather" and not tile:
        fresh = jnp.ones((len(left.valid), len(right.valid)), bool)
        rows, columns, _ = _statistics(pairs).visit(shared, left, right, fresh)
        return _closed(rows), _closed(columns)
    padded = (_padded(side, layout.devices) for side in (left, right))
    rows, columns = _tiled(pairs, layout, shared, *padded)
    return _first(rows, len(left.valid)), _first(columns, len(right.valid))


def _padded(side: Rows, devices: int) -> Rows:
    missing = -len(side.valid) % devices
    return jax.tree.map(lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), side)


def _first(reduced: Reduced, rows: int) -> Reduced:
    return jax.tree.map(lambda x: x[:rows], reduced)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled(
    pairs: PairsFn, layout: Layout, shared: PyTree, left: Rows, right: Rows
) -> tuple[Reduced, Reduced]:
    rows, columns, _ = over_pairs(_statistics(pairs), layout, shared, left, right)
    return _closed(rows), _closed(columns)


def _forward(pairs: PairsFn, layout: Layout, shared: PyTree, left: Rows, right: Rows) -> Any:
    rows, columns = _tiled(pairs, layout, shared, left, right)
    return (rows, columns), (shared, left, right, rows.exponents, columns.exponents)


def _backward(pairs: PairsFn, layout: Layout, kept: Any, gradients: Any) -> Any:
    shared, left, right, *exponents = kept
    sides = (
        _Known(side, logs, gradient.exponents, gradient.terms)
        for side, logs, gradient in zip((left, right), exponents, gradients, strict=True)
    )
    *values, d_shared = over_pairs(_gradients(pairs), layout, shared, *sides)

    def like(gradient: PyTree, primal: PyTree) -> PyTree:
        return jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, primal)

    d_left, d_right = (
        Rows(like(gradient, side.values), None, None, None)
        for gradient, side in zip(values, (left, right), strict=True)
    )
    return like(d_shared, shared), d_left, d_right


_tiled.defvjp(_forward, _backward)


def _masked(
    pairs: PairsFn, shared: PyTree, left: Rows, right: Rows, fresh: Bool[Array, "rows columns"]
) -> tuple[Pairs, Pairs]:
    keep = fresh & left.valid[:, None] & right.valid[None, :]

    def low(x: Array) -> Array:
        return jnp.where(keep, x, LOWEST)

    return tuple(
        Pairs(
            jax.lax.stop_gradient(low(said.scores)),
            jax.tree.map(low, said.exponents),
            jax.tree.map(lambda x: jnp.where(keep, x, 0).astype(jnp.float32), said.terms),
        )
        for said in pairs(shared, _in_float32(left), _in_float32(right))
    )


def _in_float32(rows: Rows) -> Rows:
    return rows._replace(values=jax.tree.map(lambda x: x.astype(jnp.float32), rows.values))


class _Statistics(NamedTuple):
    """`Reduced` while it can still be joined."""

    best: tuple[Array, Array]  # the largest score and its index
    exponents: dict[str, tuple[Array, Array]]  # the maximum, and the sum of exp(. - maximum)
    terms: dict[str, Array]


def _statistics(pairs: PairsFn) -> Reduction:
    def visit(shared: PyTree, left: Rows, right: Rows, fresh: Array) -> tuple[Any, Any, Any]:
        rows, columns = _masked(pairs, shared, left, right, fresh)
        return (
            _reduced(_entries(rows, right.index[None, :]), axis=1),
            _reduced(_entries(columns, left.index[:, None]), axis=0),
            (),
        )

    def empty(shapes: _Statistics) -> _Statistics:
        full = [LOWEST, NO_INDEX]
        best = tuple(jnp.full_like(s, x) for s, x in zip(shapes.best, full, strict=True))
        logs = {
            k: (jnp.full_like(m, LOWEST), jnp.zeros_like(s))
            for k, (m, s) in shapes.exponents.items()
        }
        return _Statistics(best, logs, jax.tree.map(jnp.zeros_like, shapes.terms))

    def join(one: _Statistics, other: _Statistics) -> _Statistics:
        return _reduced(jax.tree.map(lambda *x: jnp.stack(x), one, other), axis=0)

    def scatter(parts: _Statistics, axes: tuple[str, ...]) -> _Statistics:
        def one(x: Array) -> Array:
            x = x.reshape(jax.lax.axis_size(axes), -1)
            return jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=0)

        return _reduced(jax.tree.map(one, parts), axis=0)

    return Reduction(visit, empty, join, scatter)


def _entries(said: Pairs, index: Array) -> _Statistics:
    """The statistics of single pairs."""
    best = said.scores, jnp.broadcast_to(index, said.scores.shape)
    return _Statistics(
        best, {k: (x, jnp.ones_like(x)) for k, x in said.exponents.items()}, said.terms
    )


def _reduced(statistics: _Statistics, axis: int) -> _Statistics:
    def log_sum(top: Array, total: Array) -> tuple[Array, Array]:
        high = jax.lax.stop_gradient(top.max(axis, keepdims=True))
        return high.squeeze(axis), (total * jnp.exp(top - high)).sum(axis)

    value, index = statistics.best
    high = value.max(axis, keepdims=True)
    best = high.squeeze(axis), jnp.where(value == high, index, NO_INDEX).min(axis)
    logs = {name: log_sum(*state) for name, state in statistics.exponents.items()}
    return _Statistics(best, logs, jax.tree.map(lambda x: x.sum(axis), statistics.terms))


def _closed(statistics: _Statistics) -> Reduced:
    logs = {name: top + jnp.log(total) for name, (top, total) in statistics.exponents.items()}
    return Reduced(statistics.best[1], logs, statistics.terms)


class _Known(NamedTuple):
    """Rows, their log-sum-exps, and the gradients with respect to what was reduced of them."""

    rows: Rows
    logs: dict[str, Array]
    d_logs: dict[str, Array]
    d_terms: dict[str, Array]


def _gradients(pairs: PairsFn) -> Reduction:
    def visit(shared: PyTree, left: _Known, right: _Known, fresh: Array) -> tuple[Any, Any, Any]:
        def share(shared: PyTree, left_values: PyTree, right_values: PyTree) -> Array:
            rows, columns = _masked(
                pairs,
                shared,
                left.rows._replace(values=left_values),
                right.rows._replace(values=right_values),
                fresh,
            )
            return _share(rows, left, axis=1) + _share(columns, right, axis=0)

        values = (_in_float32(side.rows).values for side in (left, right))
        d_shared, d_left, d_right = jax.grad(share, argnums=(0, 1, 2))(shared, *values)
        return d_left, d_right, d_shared

    def add(one: PyTree, other: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, one, other)

    def scatter(parts: PyTree, axes: tuple[str, ...]) -> PyTree:
        return jax.tree.map(lambda x: jax.lax.psum_scatter(x, axes, tiled=True), parts)

    return Reduction(visit, lambda s: jax.tree.map(jnp.zeros_like, s), add, scatter)


def _share(said: Pairs, known: _Known, axis: int) -> Float[Array, ""]:
    """The right side of the module's equation for one tile."""
    total = jnp.float32(0)
    for name, exponent in said.exponents.items():
        log, weight = (jnp.expand_dims(x[name], axis) for x in (known.logs, known.d_logs))
        total += (weight * jnp.exp(exponent - log)).sum()
    for name, term in said.terms.items():
        total += (jnp.expand_dims(known.d_terms[name], axis) * term).sum()
    return total
