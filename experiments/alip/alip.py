"""Two texts an image, and weights for what agrees: ALIP (arXiv:2308.08428, section 3.3).

The released code's names are in brackets.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_mm.losses.contrastive import Softmax
from big_mm.objectives.base import Weighted
from big_mm.types import Aux, Batch, Mean, Outputs

# Which two embeddings each running average is of: texts of a record (LCG), image and text (DCG).
PAIRS = {
    "texts": ("text_embedding", "text_embedding_synthetic"),
    "text_embedding": ("image_embedding", "text_embedding"),
    "text_embedding_synthetic": ("image_embedding", "text_embedding_synthetic"),
}
# The released code squares the exponentials, and begins its averages with 1.
_SHARPNESS = 2.0
_MOMENTUM = 0.99


def cosines(outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
    """The similarity of each row's own pairs, without gradient."""
    found = {name: (outputs[a] * outputs[b]).sum(axis=-1) for name, (a, b) in PAIRS.items()}
    return jax.lax.stop_gradient(found)


@dataclasses.dataclass(frozen=True)
class Adaptive(Softmax):
    """`Softmax` with each row weighted by how its texts agree, and the image with this one.

    The row's weight is min(1, exp(2 (texts' cosine - its running average))) [weight_sample]; below
    1, it is multiplied by exp(2 (cosine of image and text - its running average)) [weight_raw,
    weight_caption]. The averages include the batch itself.
    """

    weights: str = "adaptive_weight"

    @property
    def couples(self) -> tuple[str, ...]:
        averages = tuple(f"average/{name}" for name in PAIRS)
        embeddings = ("image_embedding", "text_embedding", "text_embedding_synthetic")
        return (*embeddings, *averages, "logit_scale")

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        weight = self.weight(outputs, batch)
        loss, metrics = super().__call__(outputs | {self.weights: weight}, batch)
        return loss, metrics | {"weight": Mean.of(weight, batch.get("mask"))}

    def weight(self, outputs: Outputs, batch: Batch) -> Float[Array, " batch"]:
        ratio = {}
        for name, cosine in cosines(outputs).items():
            mean = Mean.of(cosine, batch.get("mask"))
            average = track(outputs[f"average/{name}"], mean)
            ratio[name] = jnp.exp(_SHARPNESS * (cosine - average))
        agrees = ratio["texts"] >= 1
        return jnp.where(agrees, 1.0, ratio["texts"] * ratio[self.similarity.text[0]])


def track(average: Float[Array, ""], batch: Mean) -> Float[Array, ""]:
    """The running average after one more batch."""
    return _MOMENTUM * average + (1 - _MOMENTUM) * batch.compute()


@dataclasses.dataclass(frozen=True, eq=False)
class Alip(Weighted):
    """`Weighted` over an image and two texts: `tokens` and `tokens_synthetic`.

    Its outputs also have `average/...`, the running averages of three similarities, which are its
    extra state.
    """

    def init_extra(self, rng: Array, params: Any) -> dict[str, Array]:
        return {name: jnp.ones(()) for name in PAIRS}

    def forward(self, params: Any, extra: Any, batch: Batch, rng: Array) -> Outputs:
        outputs = super().forward(params, extra, batch, rng)
        return outputs | {f"average/{name}": value for name, value in extra.items()}

    def carry(self, outputs: Outputs, batch: Batch) -> dict[str, Mean]:
        return {k: Mean.of(cosine, batch.get("mask")) for k, cosine in cosines(outputs).items()}

    def update_extra(self, extra: Any, params: Any, aux: Aux) -> Any:
        return {name: track(average, aux.carry[name]) for name, average in extra.items()}
