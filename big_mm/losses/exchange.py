"""All pairs of two sets of rows, tile after tile, where the sets are spread over devices.

Nothing here knows of losses: a `Reduction` says what a tile of pairs finds for its left rows, for
its right rows, and for the whole. A device keeps its left rows and meets all right rows in one of
two ways:

- "gather": it holds the right side whole, and what it finds out about foreign right rows is
  scattered back to their owners at the end.
- "ring": right rows travel from device to device in blocks, and what is found out about a block
  follows it one step behind, so that neither message waits for the work on a tile.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, PyTree

from big_mm import mesh as mesh_lib
from big_mm.spec import UserError

EXCHANGES = ("gather", "ring")
# For the left rows, for the right rows, for the whole.
Found = tuple[PyTree, PyTree, PyTree]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the pairs are walked through.

    Attributes:
      exchange: "gather" or "ring".
      tile: the most rows of either side in one tile; 0 for all that a device holds of it.
      mesh: rows are split over its batch axes, and the same on all devices along others; None for
        one device.
    """

    exchange: str
    tile: int
    mesh: AbstractMesh | None

    def __post_init__(self) -> None:
        if self.exchange not in EXCHANGES:
            raise UserError(f"exchange={self.exchange!r} is none of {list(EXCHANGES)}")
        if self.tile < 0:
            raise UserError(f"tile={self.tile}: a number of rows, or 0 for all")

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that rows are split over."""
        return mesh_lib.BATCH_AXES if self.mesh else ()

    @property
    def devices(self) -> int:
        """The number of pieces that rows are split into."""
        return mesh_lib.batch_devices(self.mesh) if self.mesh else 1


class Reduction(NamedTuple):
    """What is accumulated over pairs of rows.

    Attributes:
      visit: (shared, left, right, fresh) -> what a tile finds for its left rows, its right rows,
        and the whole; the last is summed. `fresh` [left, right] is false where the pair was in
        another tile before.
      empty: shapes of what is found for rows -> the same where nothing was found yet.
      join: what two tiles found for the same rows -> what they found together.
      scatter: (what this device found for all rows, axes) -> what all devices together found for
        this device's share of the rows.
    """

    visit: Callable[[Any, Any, Any, Bool[Array, "left right"]], tuple[Any, Any, Any]]
    empty: Callable[[Any], Any]
    join: Callable[[Any, Any], Any]
    scatter: Callable[[Any, tuple[str, ...]], Any]


def over_pairs(
    reduction: Reduction, layout: Layout, shared: PyTree, left: PyTree, right: PyTree
) -> Found:
    """What all pairs find for the left rows, the right rows and the whole.

    Args:
      shared: arrays that every tile sees.
      left, right: arrays whose first axis is the rows; the devices divide their number.
    """
    body = functools.partial(_on_each_device, reduction, layout)
    if layout.mesh is None or layout.mesh.size == 1:
        return body(shared, left, right)
    whole, rows = PartitionSpec(), PartitionSpec(layout.axes)
    return jax.shard_map(
        body,
        mesh=layout.mesh,
        in_specs=(whole, rows, rows),
        out_specs=(rows, rows, whole),
        check_vma=False,
    )(shared, left, right)


def _on_each_device(
    reduction: Reduction, layout: Layout, shared: PyTree, left: PyTree, right: PyTree
) -> Found:
    sweep = functools.partial(_sweep, reduction, layout.tile, shared)
    if layout.devices == 1:
        return sweep(left, right, _nothing(reduction, shared, left, right))
    exchange = _gathered if layout.exchange == "gather" else _ring
    for_left, for_right, total = exchange(reduction, layout, shared, left, right, sweep)
    return for_left, for_right, jax.lax.psum(total, layout.axes)


def _gathered(
    reduction: Reduction, layout: Layout, shared: PyTree, left: PyTree, right: PyTree, sweep: Any
) -> Found:
    gather = functools.partial(jax.lax.all_gather, axis_name=layout.axes, tiled=True)
    right = jax.tree.map(gather, right)
    nothing = _nothing(reduction, shared, left, right)
    for_left, for_right, total = sweep(left, right, nothing)
    return for_left, reduction.scatter(for_right, layout.axes), total


def _ring(
    reduction: Reduction, layout: Layout, shared: PyTree, left: PyTree, right: PyTree, sweep: Any
) -> Found:
    neighbours = [(device, (device - 1) % layout.devices) for device in range(layout.devices)]

    def send(block: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jax.lax.ppermute(x, layout.axes, neighbours), block)

    for_left, nothing, total = _nothing(reduction, shared, left, right)

    def step(_: Array, carry: tuple[PyTree, PyTree, PyTree, PyTree]) -> Any:
        block, for_left, for_block, total = carry
        # Neither message depends on this step's work, which therefore hides them.
        following, for_block = send(block), send(for_block)
        for_left, new, total = sweep(left, block, (for_left, nothing, total))
        return following, for_left, reduction.join(for_block, new), total

    carry = jax.lax.fori_loop(0, layout.devices, step, (right, for_left, nothing, total))
    _, for_left, for_block, total = carry
    return for_left, send(for_block), total


def _nothing(reduction: Reduction, shared: PyTree, left: PyTree, right: PyTree) -> Found:
    fresh = jax.ShapeDtypeStruct((_length(left), _length(right)), bool)
    shapes = jax.eval_shape(reduction.visit, shared, left, right, fresh)
    for_left, for_right, total = shapes
    zero = jax.tree.map(jnp.zeros_like, total)
    return reduction.empty(for_left), reduction.empty(for_right), zero


def _sweep(
    reduction: Reduction, tile: int, shared: PyTree, left: PyTree, right: PyTree, found: Found
) -> Found:
    """What all pairs of the rows at hand find, joined to what was found before."""
    lefts, rights = _Tiles.of(_length(left), tile), _Tiles.of(_length(right), tile)

    def one(number: Array, found: Found) -> Found:
        for_left, for_right, total = found
        i, j = number // rights.count, number % rights.count
        fresh = lefts.fresh(i)[:, None] & rights.fresh(j)[None, :]
        new = reduction.visit(shared, lefts.take(left, i), rights.take(right, j), fresh)
        for_left = lefts.put(for_left, i, reduction.join(lefts.take(for_left, i), new[0]))
        for_right = rights.put(for_right, j, reduction.join(rights.take(for_right, j), new[1]))
        return for_left, for_right, jax.tree.map(jnp.add, total, new[2])

    return jax.lax.fori_loop(0, lefts.count * rights.count, one, found)


class _Tiles(NamedTuple):
    """Tiles of equal size over rows. The last ends with the rows, so that it may reach back over
    some of the one before: that is cheaper than padded copies of the rows.
    """

    rows: int
    size: int
    count: int

    @classmethod
    def of(cls, rows: int, most: int) -> "_Tiles":
        count = -(-rows // most) if most else 1
        return cls(rows, -(-rows // count), count)

    def start(self, number: Array) -> Array:
        start = number * self.size
        # A plain multiple, where it is one, is known to the compiler as aligned.
        even = self.size * self.count == self.rows
        return start if even else jnp.minimum(start, self.rows - self.size)

    def fresh(self, number: Array) -> Bool[Array, " size"]:
        return self.start(number) + jnp.arange(self.size) >= number * self.size

    def take(self, tree: PyTree, number: Array) -> PyTree:
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=self.start(number), slice_size=self.size
        )
        return jax.tree.map(cut, tree)

    def put(self, tree: PyTree, number: Array, part: PyTree) -> PyTree:
        start = self.start(number)
        return jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, 0), tree, part
        )


def _length(tree: PyTree) -> int:
    return jax.tree.leaves(tree)[0].shape[0]
