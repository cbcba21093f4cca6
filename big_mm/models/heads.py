"""What turns features into the documented outputs: embeddings, temperature, caption logits."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from big_mm.models.layers import scaled_normal


def unit(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    """Rows of length one, float32; a row of zeros stays one."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-12))


class Temperature(nn.Module):
    """The inverse temperature of the similarities, learned as its logarithm.

    Attributes:
      init: the logarithm at initialisation; ln(1 / 0.07) in CLIP, ln(10) in SigLIP.
      maximum: the scale is clipped here, with no gradient beyond; 100 in CLIP.
    """

    init: float = math.log(1 / 0.07)
    maximum: float = 100.0

    @nn.compact
    def __call__(self) -> Float[Array, ""]:
        log_scale = self.param("log_scale", nn.initializers.constant(self.init), ())
        return jnp.minimum(jnp.exp(log_scale), self.maximum)


class CaptionHead(nn.Module):
    """The output softmax's matrix."""

    vocab_size: int

    @nn.compact
    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        kernel = self.param("kernel", scaled_normal(), (x.shape[-1], self.vocab_size))
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
