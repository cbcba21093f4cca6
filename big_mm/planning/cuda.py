"""XLA's GPU compiler without a GPU: JAX's CUDA plugin compiles for a GPU that it is told.

Kernels are not timed against one another, which takes a GPU: matrix products go to cuBLAS. The
compiler has no estimate of cycles, and does not refuse what does not fit.
"""

import contextlib
import functools
import importlib.metadata
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from big_mm.planning.chips import GPU, Topology
from big_mm.spec import UserError

REFUSES = False  # what does not fit
# Triton's products must be timed to find their tiles.
OPTIONS = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False}
_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
_INSTALL = "pip install -e '.[plan-gpu]' (700 MB, no GPU needed)"
# A Hopper GPU as its driver describes it, in the form of stream_executor.GpuTargetConfigProto.
_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


def require() -> None:
    """Raises a UserError unless JAX's CUDA plugin is installed."""
    if not versions():
        raise UserError(
            f"plans of GPUs are compiled by JAX's CUDA plugin, which is not installed: {_INSTALL}, "
            "or use --analytic, which needs no compiler"
        )
    # Unless asked for: the plugin reads it once and calls a slow compilation an error.
    if os.environ.get(_LOG_LEVEL) == "1":  # JAX's own default
        os.environ[_LOG_LEVEL] = "3"


def devices(topology: Topology) -> list[Any]:
    """The GPUs of a slice, as devices that programs can be compiled for.

    Raises:
      UserError: CUDA's device library, which every program needs, is not there.
    """
    nodes, gpus = topology.shape
    _check_libraries(topology.chip)
    # Each node is a slice of JAX's, as it is where JAX runs on it.
    return _described(topology.chip, f"{nodes}x1x{gpus}")


def versions() -> dict[str, str]:
    """Of the compiler; empty if there is none."""
    found = {}
    for name in _PLUGINS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _described(chip: GPU, extent: str) -> list[Any]:
    target = _TARGET.format(memory=chip.memory, bandwidth=int(chip.hbm_bandwidth), name=chip.name)
    described = topologies.get_topology_desc("", "cuda", target_config=target, topology=extent)
    return list(described.devices)


@functools.cache
def _check_libraries(chip: GPU) -> None:
    """Compiles one function for one GPU, so that what is missing is said at once."""
    mesh = jax.make_mesh((1,), ("one",), devices=_described(chip, "1x1x1"))
    x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    lowered = jax.jit(jax.lax.lgamma).trace(x).lower(lowering_platforms=("cuda",))
    try:
        lowered.compile(OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "libdevice" not in str(error) and "ptxas" not in str(error):
            raise
        raise UserError(
            f"the GPU compiler does not find CUDA's libraries: {_INSTALL}, or a CUDA toolkit "
            f"({str(error).splitlines()[0][:120]})"
        ) from None
