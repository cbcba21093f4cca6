"""A model with the documented keys and little else, and an evaluator of any model."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from big_mm.evaluators import base


class Tower(nn.Module):
    """Pixels to a vector."""

    width: int

    @nn.compact
    def __call__(self, image):
        x = image.reshape(len(image), -1) / 255.0
        x = nn.LayerNorm(name="norm")(nn.Dense(32, name="in")(x))
        return nn.Dense(self.width, name="out")(nn.tanh(x))


class Model(nn.Module):
    """The least that has images, tokens and the documented outputs; compiles in no time."""

    vocab_size: int
    width: int = 8
    bias: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, rows, train=False):
        image = Tower(self.width, name="image")(rows["image"])
        image = nn.Dropout(self.dropout, deterministic=not train)(image)
        words = nn.Embed(self.vocab_size, self.width, name="text")(rows["tokens"])
        bias = {"logit_bias": self.param("bias", nn.initializers.ones, ())} if self.bias else {}
        return bias | {
            "image_embedding": image,
            "text_embedding": words.mean(1),
            "caption_logits": nn.Dense(self.vocab_size, name="head")(words + image[:, None]),
            "logit_scale": jnp.exp(self.param("log_scale", nn.initializers.zeros, ())),
        }


@dataclasses.dataclass(frozen=True)
class Size(base.Evaluator):
    """The Euclidean norm of all parameters."""

    def evaluate(self, predictor, step):
        squares = [float((leaf**2).sum()) for leaf in jax.tree.leaves(predictor.params)]
        return base.Result({"norm": sum(squares) ** 0.5})
