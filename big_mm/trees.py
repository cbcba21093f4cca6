"""Path patterns over parameter trees: match, split, merge, count, overview, digest.

A path is the keys from the root joined by "/" ("image/blocks/attention/query/kernel"). Rules are
((regex, value), ...) pairs: a path takes the value of the first regex that matches all of it, and a
regex that matches no path is an error, because it is a rule that silently does nothing.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_mm.spec import UserError

Tree = Any
Rules = Sequence[tuple[str, Any]]


def flatten(tree: Tree) -> dict[str, Any]:
    """{path: leaf} in the tree's order."""
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts from {path: leaf}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def match(tree: Tree, rules: Rules, default: Any) -> Tree:
    """A tree of the same structure that holds each leaf's rule value, or `default`.

    Raises:
      UserError: a rule matches no path, or is not a valid regular expression.
    """
    flat = flatten(tree)
    values = match_paths(flat, rules, default)
    return jax.tree.unflatten(jax.tree.structure(tree), [values[path] for path in flat])


def match_paths(paths: Iterable[str], rules: Rules, default: Any) -> dict[str, Any]:
    """{path: the value of the first rule that matches it, or `default`}.

    Raises:
      UserError: a rule matches no path, or is not a valid regular expression.
    """
    paths = list(paths)
    values = dict.fromkeys(paths, default)
    for pattern, value in reversed(tuple(rules)):
        try:
            hits = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as error:
            raise UserError(f"the rule {pattern!r} is not a regular expression: {error}") from error
        if not hits:
            known = "\n  ".join(paths)
            raise UserError(f"the rule {pattern!r} matches no parameter; the paths are\n  {known}")
        values.update(dict.fromkeys(hits, value))
    return values


def split(tree: Tree, selected: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two flat dicts: the leaves where the tree of booleans `selected` is true, and the others."""
    flat, chosen = flatten(tree), flatten(selected)
    return (
        {path: leaf for path, leaf in flat.items() if chosen[path]},
        {path: leaf for path, leaf in flat.items() if not chosen[path]},
    )


def merge(*parts: dict[str, Any]) -> dict[str, Any]:
    """The nested tree of several flat dicts with disjoint paths: the inverse of `split` on nested
    dicts.
    """
    flat: dict[str, Any] = {}
    for part in parts:
        flat |= part
    return unflatten(flat)


def count(tree: Tree) -> int:
    """The number of elements in all leaves."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def size(tree: Tree) -> int:
    """Bytes of all leaves."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def overview(tree: Tree, describe: Callable[[str, Any], str] = lambda path, leaf: "") -> str:
    """A table, a line a leaf: path, shape, type, elements, and what `describe` adds."""
    rows = [
        (path, "x".join(map(str, np.shape(leaf))) or "scalar", str(leaf.dtype), f"{count(leaf):,}")
        + ((note,) if (note := describe(path, leaf)) else ())
        for path, leaf in flatten(tree).items()
    ]
    rows.append(("total", "", "", f"{count(tree):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for path, shape, dtype, number, *note in rows:
        cells = path.ljust(widths[0]), shape.ljust(widths[1]), dtype.ljust(widths[2])
        lines.append("  ".join([*cells, number.rjust(widths[3]), *note]).rstrip())
    return "\n".join(lines)


def digest(tree: Tree) -> dict[str, int]:
    """A 32-bit checksum of each leaf's bits, the same for any sharding or device count.

    The sum, modulo 2**32, of each 32-bit word times an odd weight that depends on its position.
    Integer sums do not depend on their order, and one changed bit always changes the sum, since an
    odd weight times a power of two is not zero modulo 2**32. Jitted, one pass at memory bandwidth,
    a few bytes to the host.
    """
    sums = jax.device_get(_digest(flatten(tree)))
    return {path: int(value) for path, value in sums.items()}


@jax.jit
def _digest(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: _checksum(leaf) for path, leaf in flat.items()}


def _checksum(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    # The position hash is built axis by axis, which a sharded leaf computes locally.
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position * jnp.uint32(2654435761) + index
    weight = ((position * jnp.uint32(2246822519)) ^ (position >> 15)) | jnp.uint32(1)
    return (words * weight).sum(dtype=jnp.uint32)


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)
