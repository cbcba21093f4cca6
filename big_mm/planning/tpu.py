"""The TPU compiler without a TPU: libtpu compiles for a topology that it is told."""

import importlib.metadata
import os
from typing import Any

from jax.experimental import topologies

from big_mm.planning.chips import Topology
from big_mm.spec import UserError

# No hardware is looked for, no log files are written, and two programs may compile at a time. An
# accelerator type must be named for that; every topology can then be compiled for.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LOG_DIR": "disabled",
}
REFUSES = True  # what does not fit
OPTIONS: dict[str, Any] = {}


def require() -> None:
    """Raises a UserError unless libtpu is installed."""
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "plans are compiled by the TPU compiler, which is not installed: pip install -e "
            "'.[plan]' (700 MB, no TPU needed), or use --analytic, which needs no compiler"
        ) from None


def devices(topology: Topology) -> list[Any]:
    """The chips of a slice, as devices that programs can be compiled for."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    extent = topology.name.partition(":")[2]
    described = topologies.get_topology_desc(
        f"{topology.chip.compiler}:{extent}", platform="tpu", **dict(topology.chip.options)
    )
    return list(described.devices)


def versions() -> dict[str, str]:
    """Of the compiler."""
    return {"libtpu": importlib.metadata.version("libtpu")}
