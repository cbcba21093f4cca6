"""The reward of discriminative fine-tuning: does a caption single out its image?"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_mm.objectives.rewards import Rowwise
from big_mm.types import Batch, Outputs


@dataclasses.dataclass(frozen=True)
class Discrimination(Rowwise):
    """log p(image | caption) among the images of the batch, by a frozen retriever
    (arXiv:2304.01662, section 3): the log-softmax over images of scale * cosine.
    """

    couples: ClassVar[bool] = True

    def __call__(self, written: Batch, batch: Batch, judged: Outputs) -> Float[Array, " batch"]:
        logits_BxB = judged["logit_scale"] * (
            judged["text_embedding"] @ judged["image_embedding"].T
        )
        if "mask" in batch:
            logits_BxB = jnp.where(batch["mask"][None, :] != 0, logits_BxB, -jnp.inf)
        return jnp.diagonal(jax.nn.log_softmax(logits_BxB, axis=1))
