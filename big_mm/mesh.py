"""The device mesh, where each array lies on it, and the start of multi-process runs.

Mesh axes: `data` replicates parameters, `fsdp` shards them, `tensor` splits matrices; the batch is
split over `data` and `fsdp`. A parameter that no rule names is sharded over `fsdp` along its
largest divisible axis, so that new code needs no annotation.
"""

import contextlib
import dataclasses
import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from big_mm import trees
from big_mm.spec import UserError

# Rules need a mesh's shape, not its devices.
AnyMesh = Mesh | AbstractMesh

BATCH_AXES = ("data", "fsdp")
# Below this many elements a shard saves less memory than its collective costs.
MIN_SHARDED = 2**14


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
        sizes = [self.data, self.fsdp, self.tensor]
        known = math.prod(s for s in sizes if s != -1)
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes) or len(devices) % known:
            raise UserError(f"mesh {dataclasses.asdict(self)} does not fit {len(devices)} devices")
        sizes = [len(devices) // known if s == -1 else s for s in sizes]
        if math.prod(sizes) != len(devices):
            raise UserError(
                f"mesh {sizes} (data, fsdp, tensor) needs {math.prod(sizes)} devices, "
                f"there are {len(devices)}"
            )
        # Explicit axes, the newer default, break nn.Embed.
        return jax.make_mesh(
            sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices
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


def batch_devices(mesh: Mesh) -> int:
    """The number of pieces that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def shardings(tree: Any, mesh: AnyMesh, rules: trees.Rules = ()) -> Any:
    """A tree of shardings for parameters (arrays or their shapes).

    Raises:
      UserError: a rule matches nothing, names an unknown axis, or does not divide a dimension.
    """
    chosen = trees.match_paths(trees.flatten(tree), rules, None)
    out = [
        NamedSharding(
            mesh, _default(leaf.shape, mesh) if rule is None else _named(path, leaf, rule, mesh)
        )
        for (path, leaf), rule in zip(trees.flatten(tree).items(), chosen.values(), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), out)


def _default(shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    parts = mesh.shape["fsdp"]
    axes = [i for i, n in enumerate(shape) if n % parts == 0]
    if parts == 1 or not axes or math.prod(shape) < MIN_SHARDED:
        return PartitionSpec()
    largest = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*("fsdp" if i == largest else None for i in range(len(shape))))


def _named(path: str, leaf: Any, rule: tuple[Any, ...], mesh: AnyMesh) -> PartitionSpec:
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
    return PartitionSpec(*rule)


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices as rows of the global batch."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def init_distributed() -> None:
    """Joins the processes of a multi-process run; does nothing in a single process.

    Plain environment variables (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID) win;
    otherwise JAX's own detection is used where SLURM, Open MPI or a TPU pod slice announce several
    processes. Call it before anything touches a device.

    Raises:
      UserError: only some of the three variables are set.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if name in os.environ]
    if len(given) == len(names):
        address, count, index = (os.environ[name] for name in names)
        jax.distributed.initialize(address, int(count), int(index))
    elif given and given != names[:1]:
        raise UserError(f"{', '.join(given)} without {', '.join(set(names) - set(given))}")
    elif _announced_processes() > 1:
        jax.distributed.initialize()


def _announced_processes() -> int:
    counts = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "localhost").split(",")
    return max(*(int(count) for count in counts), len(hosts))
