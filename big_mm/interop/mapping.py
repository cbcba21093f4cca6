"""Tables of names that lead from another program's weights to ours and back.

A table is a list of `Entry`: paths of ours, names of theirs, and a codec, which is a pair of
inverse functions between the arrays. The same table imports (`read`) and exports (`write`), so that
what is written is what was read. `{}` in a name stands for the number of a layer; ours are stacked.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_mm import trees
from big_mm.interop.tensors import Tensors
from big_mm.spec import UserError

Arrays = Sequence[np.ndarray]
Shape = tuple[int, ...]
# How many weights a message lists.
LISTED = 20


@dataclasses.dataclass(frozen=True)
class Codec:
    """A pair of inverse functions.

    Attributes:
      write: ours to theirs.
      read: theirs and the shapes of ours, to ours.
    """

    write: Callable[[Arrays], Arrays]
    read: Callable[[Arrays, Sequence[Shape]], Arrays]


def _reshaped(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
    return [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]


SAME = Codec(lambda ours: ours, lambda theirs, shapes: theirs)
# Ours without axes of length one before it (a probe [1, 1, width], a temperature [1]).
ONE_AXIS = Codec(lambda ours: [ours[0][None]], _reshaped)
TWO_AXES = Codec(lambda ours: [ours[0].reshape(1, 1, -1)], _reshaped)
# PyTorch's linear layers hold [out, in].
TRANSPOSED = Codec(lambda ours: [ours[0].T], lambda theirs, shapes: [theirs[0].T])


def patches(size: int, torch: bool = True) -> Codec:
    """Our kernel [row * column * channel, width] and that of a convolution of `size` pixels."""
    order, back = ((3, 2, 0, 1), (2, 3, 1, 0)) if torch else ((0, 1, 2, 3), (0, 1, 2, 3))

    def write(ours: Arrays) -> Arrays:
        return [ours[0].reshape(size, size, -1, ours[0].shape[-1]).transpose(order)]

    return Codec(write, lambda theirs, shapes: _reshaped([theirs[0].transpose(back)], shapes))


def projections(
    rank: int, groups: Sequence[int] = (1,), torch: bool = True, flat: bool = False
) -> Codec:
    """Queries, keys and values: any number of ours, stacked on the axis before the heads where
    they are several ([in, 3, heads, dim]), and theirs, joined on the first axis.

    Args:
      rank: of one of them in our layout: 3 for kernels [in, heads, dim], 2 for biases.
      groups: how many of them each of their tensors holds.
      torch: theirs are [out, in]; or as ours (Flax).
      flat: theirs have no axis of heads, as PyTorch's never have.
    """

    def write(ours: Arrays) -> Arrays:
        parts: list[np.ndarray] = []
        for array in ours:
            parts += [array] if array.ndim == rank else list(np.moveaxis(array, -3, 0))
        if torch or flat:
            parts = [p.reshape(-1) if rank == 2 else p.reshape(p.shape[0], -1) for p in parts]
        parts = [p.T for p in parts] if torch else parts
        rest = iter(parts)
        return [_joined([next(rest) for _ in range(count)]) for count in groups]

    def read(theirs: Arrays, shapes: Sequence[Shape]) -> Arrays:
        split = [np.split(a, n) if n > 1 else [a] for a, n in zip(theirs, groups, strict=True)]
        rest = iter([part.T if torch else part for part in itertools.chain(*split)])
        made = []
        for shape in shapes:
            if len(shape) == rank:
                made.append(next(rest).reshape(shape))
            else:
                one = (*shape[:-3], *shape[-2:])
                stack = [next(rest).reshape(one) for _ in range(shape[-3])]
                made.append(np.stack(stack, axis=-3))
        return made

    return Codec(write, read)


def _joined(parts: Arrays) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


# The output of attention: ours [heads, dim, width], PyTorch's [width, heads * dim].
OUT = Codec(
    lambda ours: [ours[0].reshape(-1, ours[0].shape[-1]).T],
    lambda theirs, shapes: _reshaped([theirs[0].T], shapes),
)
# Flax's without an axis of heads, [heads * dim, width].
FLAT_OUT = Codec(lambda ours: [ours[0].reshape(-1, ours[0].shape[-1])], _reshaped)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One or several of our parameters and what they are called elsewhere.

    Attributes:
      ours: paths.
      theirs: names, with `{}` for the layer's number where each layer has its own.
      codec: between the arrays of one layer.
      depth: layers; 0 for what is not of a stack.
      axis: of the layers in their arrays, where all are in one (no `{}` in the names).
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    codec: Codec = SAME
    depth: int = 0
    axis: int = 0

    @property
    def numbered(self) -> bool:
        """Whether each layer has names of its own."""
        return self.depth > 0 and "{}" in self.theirs[0]

    def names(self) -> list[str]:
        """All names of theirs."""
        if not self.numbered:
            return list(self.theirs)
        return [name.format(i) for name in self.theirs for i in range(self.depth)]


Table = Sequence[Entry]


def shapes_of(model: Any) -> dict[str, Shape]:
    """{path: shape} of the parameters of a model of images and texts, of which none is made."""
    side = model.image.image_size
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    batch = {
        "image": jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8),
        "tokens": tokens,
        "token_mask": tokens,
    }
    made = jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch, train=False), batch)
    return {path: leaf.shape for path, leaf in trees.flatten(made["params"]).items()}


def expected(table: Table, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """{name of theirs: its shape} for a model with our `shapes`."""
    found: dict[str, Shape] = {}
    for entry in table:
        # Zeros of no size in memory, through the codec.
        layer = [shapes[path][1:] if entry.depth else shapes[path] for path in entry.ours]
        zeros = [np.broadcast_to(np.float32(0), shape) for shape in layer]
        for name, array in zip(entry.theirs, entry.codec.write(zeros), strict=True):
            shape = array.shape
            if entry.numbered:
                found |= {name.format(i): shape for i in range(entry.depth)}
            else:
                at = (*shape[: entry.axis], entry.depth, *shape[entry.axis :])
                found[name] = at if entry.depth else shape
    return found


def read(
    table: Table, tensors: Tensors, shapes: Mapping[str, Shape], ignored: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Our parameters by path, float32, and the names that carry no weights.

    Args:
      shapes: of our model's parameters.
      ignored: patterns of buffers that carry no weights; of anything else, all must be used.

    Raises:
      UserError: weights that are missing, extra, or of another shape or type; lists them.
    """
    table = list(table)
    _check(table, tensors, shapes, ignored)
    params: dict[str, np.ndarray] = {}
    for entry in table:
        ours = [np.empty(shapes[path], np.float32) for path in entry.ours]
        whole = None if entry.numbered else [_widened(tensors, name) for name in entry.theirs]
        for i in range(max(entry.depth, 1)):
            layer = [array[i] if entry.depth else array for array in ours]
            if whole is None:
                theirs = [_widened(tensors, name.format(i)) for name in entry.theirs]
            else:
                theirs = [a.take(i, entry.axis) if entry.depth else a for a in whole]
            made = entry.codec.read(theirs, [array.shape for array in layer])
            for target, array in zip(layer, made, strict=True):
                target[...] = array
        params |= dict(zip(entry.ours, ours, strict=True))
    return params, sorted(tensors.keys() - {n for entry in table for n in entry.names()})


def write(table: Table, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Theirs by name, of our parameters by path."""
    written: dict[str, np.ndarray] = {}
    for entry in table:
        ours = [np.asarray(params[path]) for path in entry.ours]
        if not entry.depth:
            written |= dict(zip(entry.theirs, entry.codec.write(ours), strict=True))
            continue
        layers = [entry.codec.write([a[i] for a in ours]) for i in range(entry.depth)]
        for name, *arrays in zip(entry.theirs, *layers, strict=True):
            if entry.numbered:
                written |= {name.format(i): array for i, array in enumerate(arrays)}
            else:
                written[name] = np.stack(arrays, axis=entry.axis)
    return {name: np.asarray(array, order="C") for name, array in written.items()}


def _check(
    table: Table, tensors: Tensors, shapes: Mapping[str, Shape], ignored: Sequence[str]
) -> None:
    mapped = {path for entry in table for path in entry.ours}
    assert mapped == shapes.keys(), f"no name for {sorted(mapped ^ shapes.keys())}"
    wanted = expected(table, shapes)
    missing = [name for name in wanted if name not in tensors]
    extra = [
        name
        for name in tensors
        if name not in wanted and not any(re.fullmatch(pattern, name) for pattern in ignored)
    ]
    if missing or extra:
        raise UserError(
            f"{tensors.source} is not of this architecture:"
            f"{_listed('missing', missing)}{_listed('not in the architecture', extra)}"
        )
    differ = [
        f"{name}: expected {shape}, found {tensors.shape(name)}"
        for name, shape in wanted.items()
        if tensors.shape(name) != shape
    ]
    if differ:
        raise UserError(f"{tensors.source} is not of this architecture:{_listed('shapes', differ)}")


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = [*names[:LISTED], *([f"and {len(names) - LISTED} more"] * (len(names) > LISTED))]
    return f"\n {len(names)} {what}:\n  " + "\n  ".join(shown)


def _widened(tensors: Tensors, name: str) -> np.ndarray:
    array = tensors[name]
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{tensors.source}: {name} is of type {array.dtype}, not a float")
    return array.astype(np.float32)
