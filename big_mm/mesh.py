"""The device mesh, and where each array lies on it.

Mesh axes: `data` replicates parameters, `fsdp` shards them, `tensor` splits the matrices of a layer
among devices that work on the same rows; the batch is split over `data` and `fsdp`. A parameter
that no rule names is split over `tensor` where its name is in TENSOR, and sharded over `fsdp` along
the largest of its other axes that this divides, so that new code needs no annotation.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from big_mm import trees
from big_mm.spec import UserError

# Rules need a mesh's shape, not its devices.
AnyMesh = Mesh | AbstractMesh

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# Explicit axes, the newer default, break nn.Embed.
_AXIS_TYPES = (AxisType.Auto,) * 3
# Below this many elements a shard saves less memory than its collective costs.
MIN_SHARDED = 2**14
# What `tensor` splits, by the end of a parameter's path: the axis, counted from the last. Heads and
# hidden units are computed apart and summed by the projection that follows (arXiv:1909.08053,
# section 3); embeddings and output logits are split by vocabulary.
TENSOR = (
    (r"(.*/)?(qkv|query|kv)/(kernel|bias)", -2),
    (r"(.*/)?out/kernel", -3),
    (r"(.*/)?up/(kernel|bias)", -1),
    (r"(.*/)?down/kernel", -2),
    (r"(.*/)?text/embedding", -2),
    (r"(.*/)?caption_head/kernel", -1),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The shape of the mesh and the sharding rules.

    Attributes:
      data, fsdp, tensor: devices along each axis; one may be -1, meaning "all that are left".
      rules: ((regex over parameter paths, axes per dimension), ...), for instance
        ((".*/mlp/up/kernel", (None, None, "tensor")),); a dimension is an axis, several, or None.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def make(self, devices: Any = None) -> Mesh:
        """The mesh over `devices` (default: all).

        Raises:
          UserError: the axis sizes do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else list(devices)
        return Mesh(_arranged(self._sizes(len(devices)), devices), AXES, axis_types=_AXIS_TYPES)

    def abstract(self, count: int) -> AbstractMesh:
        """The mesh over `count` devices that are not here. Raises as `make` does."""
        return AbstractMesh(tuple(self._sizes(count)), AXES, axis_types=_AXIS_TYPES)

    def _sizes(self, count: int) -> list[int]:
        sizes = [self.data, self.fsdp, self.tensor]
        known = math.prod(s for s in sizes if s != -1)
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes) or count % known:
            raise UserError(f"mesh {dataclasses.asdict(self)} does not fit {count} devices")
        sizes = [count // known if s == -1 else s for s in sizes]
        if math.prod(sizes) != count:
            raise UserError(
                f"mesh {sizes} (data, fsdp, tensor) needs {math.prod(sizes)} devices, "
                f"there are {count}"
            )
        return sizes


def _arranged(sizes: Sequence[int], devices: list[Any]) -> np.ndarray:
    """Devices in the mesh's shape, neighbours close together: `tensor` and `fsdp` lie within a
    slice (a TPU slice, or GPUs joined by NVLink) and `data` crosses the slower network in between.
    """
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    data, *inner = sizes
    if data % len(slices):
        logging.warning(
            "mesh.data=%d is no multiple of the %d slices of the devices: the other axes, which "
            "communicate more, cross the network between slices",
            data,
            len(slices),
        )
        return np.array([d for part in slices.values() for d in part]).reshape(sizes)
    shape = (data // len(slices), *inner)
    return np.concatenate(
        [
            mesh_utils.create_device_mesh(shape, part, allow_split_physical_axes=True)
            for part in slices.values()
        ]
    )


def single_device_mesh() -> Mesh:
    """A mesh of the first local device."""
    return MeshConfig().make(jax.local_devices()[:1])


def using(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Makes the mesh known to everything that is traced inside; see `current`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def current() -> AbstractMesh | None:
    """The mesh that the code being traced will run on; None outside of `using`, where a loss or a
    layer may take it that there is one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_devices(mesh: AnyMesh) -> int:
    """The number of pieces that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def by_rows(x: jax.Array) -> jax.Array:
    """An activation, batch first, told to lie as the batch does; outside of `using`, as it is.

    The compiler's partitioner, left to itself, may follow the parameters instead: gather the batch
    and split the width, on every device a tensor-parallel share of all rows.
    """
    return (
        x if current() is None else jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))
    )


def shardings(tree: Any, mesh: AnyMesh, rules: trees.Rules = ()) -> Any:
    """A tree of shardings for parameters (arrays or their shapes).

    Raises:
      UserError: a rule matches nothing, names an unknown axis, or does not divide a dimension.
    """
    chosen = trees.match_paths(trees.flatten(tree), rules, None)
    out = [
        _default(path, leaf.shape, mesh) if rule is None else _named(path, leaf, rule, mesh)
        for (path, leaf), rule in zip(trees.flatten(tree).items(), chosen.values(), strict=True)
    ]
    return jax.tree.unflatten(
        jax.tree.structure(tree), [NamedSharding(mesh, PartitionSpec(*axes)) for axes in out]
    )


def fully_sharded(shape: tuple[int, ...], mesh: AnyMesh) -> NamedSharding:
    """Over `fsdp` along the largest axis that it divides, if there are enough elements."""
    return NamedSharding(mesh, PartitionSpec(*_over_fsdp([None] * len(shape), shape, mesh)))


def _over_fsdp(axes: list[str | None], shape: tuple[int, ...], mesh: AnyMesh) -> list[str | None]:
    parts = mesh.shape["fsdp"]
    free = [i for i, n in enumerate(shape) if axes[i] is None and n % parts == 0]
    if parts == 1 or not free or math.prod(shape) < MIN_SHARDED:
        return axes
    largest = max(free, key=lambda i: shape[i])
    return ["fsdp" if i == largest else name for i, name in enumerate(axes)]


def _default(path: str, shape: tuple[int, ...], mesh: AnyMesh) -> list[str | None]:
    parts = mesh.shape["tensor"]
    axes: list[str | None] = [None] * len(shape)
    split = next((axis for pattern, axis in TENSOR if re.fullmatch(pattern, path)), 0)
    if parts > 1 and 0 < -split <= len(shape):
        if shape[split] % parts:
            raise UserError(
                f"mesh.tensor={parts} does not divide the {shape[split]} parts of {path} "
                f"{shape}: take another number, or place the parameter by a rule, as in mesh.rules="
                f"(({path!r}, ()),) for a copy on each device"
            )
        axes[split] = "tensor"
    return _over_fsdp(axes, shape, mesh)


def _named(path: str, leaf: Any, rule: tuple[Any, ...], mesh: AnyMesh) -> tuple[Any, ...]:
    if len(rule) > len(leaf.shape):
        raise UserError(f"the sharding rule {rule} has more dimensions than {path} {leaf.shape}")
    for size, axes in zip(leaf.shape, rule, strict=False):
        names = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
        if unknown := [name for name in names if name not in mesh.shape]:
            raise UserError(
                f"the sharding rule for {path} names {unknown}; axes are {list(mesh.shape)}"
            )
        if size % math.prod(mesh.shape[name] for name in names):
            raise UserError(
                f"{path} {leaf.shape} cannot be split by {rule} on mesh {dict(mesh.shape)}"
            )
    return rule


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices as rows of the global batch."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
