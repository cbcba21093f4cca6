"""What turns features into outputs: embeddings, temperature, caption logits, prototypes."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from big_mm import mesh
from big_mm.models.layers import scaled_normal


def unit(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    """Rows of length one, float32; a row of zeros stays one."""
    x = mesh.by_rows(x.astype(jnp.float32))
    return x / jnp.sqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-12))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_above(x: Float[Array, ""], maximum: float | Array) -> Float[Array, ""]:
    """min(x, maximum); at the bound only a gradient that leads back, a positive one, passes.

    With the gradient of the minimum, zero, a parameter beyond its bound would stay there for ever.
    """
    return jnp.minimum(x, maximum)


def _clip_above_forward(x: Array, maximum: float | Array) -> tuple[Array, Array]:
    return jnp.minimum(x, maximum), x >= maximum


def _clip_above_backward(maximum: float, clipped: Array, gradient: Array) -> tuple[Array]:
    del maximum
    return (jnp.where(clipped & (gradient < 0), 0.0, gradient),)


clip_above.defvjp(_clip_above_forward, _clip_above_backward)


class Temperature(nn.Module):
    """The inverse temperature of the similarities, learned as its logarithm.

    Attributes:
      init: the logarithm at initialisation; ln(1 / 0.07) in CLIP, ln(10) in SigLIP.
      maximum: of the inverse temperature; 100 in CLIP.
    """

    init: float = math.log(1 / 0.07)
    maximum: float = 100.0

    @nn.compact
    def __call__(self) -> Float[Array, ""]:
        log_scale = self.param("log_scale", nn.initializers.constant(self.init), ())
        return jnp.exp(clip_above(log_scale, math.log(self.maximum)))


class CaptionHead(nn.Module):
    """The output softmax's matrix; its bias, if it has one, is a last row."""

    width: int
    vocab_size: int
    use_bias: bool = False

    @nn.compact
    def __call__(self) -> Float[Array, "rows vocab"]:
        kernel = self.param("kernel", scaled_normal(), (self.width, self.vocab_size))
        if not self.use_bias:
            return kernel
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        return jnp.concatenate([kernel, bias[None]])


def caption_outputs(
    features: Float[Array, "batch length width"], kernel: Float[Array, "rows vocab"], train: bool
) -> dict[str, Array]:
    """`caption_logits`, float32, by a `CaptionHead`; for losses that never hold all of them
    (`CrossEntropy.chunks`), while training also what they are the product of. What a jitted loss
    does not use is not computed.
    """
    if len(kernel) > features.shape[-1]:
        features = jnp.pad(features, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    features, kernel = mesh.by_rows(features), kernel.astype(features.dtype)
    out = {"caption_logits": jnp.matmul(features, kernel, preferred_element_type=jnp.float32)}
    if train:
        out |= {"caption_features": features, "caption_kernel": kernel}
    return out


class Prototypes(nn.Module):
    """Cosines with learned prototypes, behind an MLP (the head of DINO, arXiv:2104.14294)."""

    count: int
    hidden: int
    bottleneck: int

    @nn.compact
    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows count"]:
        for _ in range(2):
            x = nn.gelu(nn.Dense(self.hidden)(x))
        x = unit(nn.Dense(self.bottleneck)(x))
        kernel = self.param("kernel", nn.initializers.normal(1.0), (self.bottleneck, self.count))
        return x @ (kernel / jnp.linalg.norm(kernel, axis=0))
