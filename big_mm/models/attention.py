"""Scaled dot-product attention, by several implementations of the same function.

- "xla": plain operations, which every backend compiles and fuses; any lengths, any mask.
- "cudnn": cuDNN's fused kernel, on NVIDIA GPUs only; any mask, 16-bit types.
- "splash": JAX's own kernel for TPUs, which keeps the scores [heads, target, source] out of HBM; no
  mask, and lengths that 128 divides. Compiled for another backend it is "xla": a checkpoint trained
  with it is read anywhere.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from big_mm import mesh
from big_mm.spec import UserError, choose

IMPLEMENTATIONS = ("xla", "cudnn", "splash")
Mask = Bool[Array, "#batch #heads #target #source"]
ContextMask = Bool[Array, "#batch #heads #target #memory"]
# The kernel's tiles are multiples of this; larger ones are faster until they fill the memory.
TILE, LARGEST_TILE = 128, 512


def attention(
    query: Float[Array, "batch target heads dim"],
    key: Float[Array, "batch source heads dim"],
    value: Float[Array, "batch source heads dim"],
    mask: Mask | None = None,
    implementation: str = "xla",
) -> Float[Array, "batch target heads dim"]:
    """Scaled dot-product attention; `mask` is true where a target may see a source.

    A target that may see nothing gets the mean of all values, not NaN.

    Raises:
      UserError: "splash" with a mask, or lengths that 128 does not divide.
    """
    choose("implementation", implementation, IMPLEMENTATIONS)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    if implementation == "xla":
        return _plain(query, key, value, mask)
    lengths = query.shape[1], key.shape[1]
    if mask is not None or any(length % TILE for length in lengths):
        raise UserError(
            f"implementation='splash' takes no mask and lengths that {TILE} divides, here are "
            f"{lengths[0]} targets and {lengths[1]} sources{', masked' * (mask is not None)}: "
            "set implementation='xla' for these layers"
        )
    return jax.lax.platform_dependent(query, key, value, tpu=splash, default=_plain)


def _plain(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, value)


def splash(
    query: Float[Array, "batch target heads dim"],
    key: Float[Array, "batch source heads dim"],
    value: Float[Array, "batch source heads dim"],
    interpret: bool = False,
) -> Float[Array, "batch target heads dim"]:
    """The kernel itself, on each device's rows and heads; `interpret` runs it on a CPU, slowly."""
    local = functools.partial(_splash, interpret=interpret)
    if mesh.current() is not None:
        rows = PartitionSpec(mesh.BATCH_AXES, None, "tensor")
        local = jax.shard_map(local, in_specs=rows, out_specs=rows, check_vma=False)
    return local(query, key, value)


def _splash(query: Array, key: Array, value: Array, interpret: bool) -> Array:
    heads, target, source = query.shape[2], query.shape[1], key.shape[1]
    q_tile, kv_tile = math.gcd(target, LARGEST_TILE), math.gcd(source, LARGEST_TILE)
    tiles = splash_attention_kernel.BlockSizes(
        block_q=q_tile,
        block_kv=kv_tile,
        block_kv_compute=kv_tile,
        block_q_dkv=q_tile,
        block_kv_dkv=kv_tile,
        block_kv_dkv_compute=kv_tile,
        block_q_dq=q_tile,
        block_kv_dq=kv_tile,
    )
    everything = splash_attention_mask.FullMask((target, source))
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([everything] * heads),
        block_sizes=tiles,
        interpret=interpret,
    )
    query = query * query.shape[-1] ** -0.5
    by_head = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(jax.vmap(kernel)(*by_head), 1, 2)
