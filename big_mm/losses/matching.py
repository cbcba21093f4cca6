"""Image-text matching: whether a pair belongs together, and the negatives that are hard to tell."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from big_mm.types import Batch, Mean, Outputs


@dataclasses.dataclass(frozen=True)
class Matching:
    """The binary cross-entropy of `match_logits` [B,C]: of each row's pairs the first belongs
    together, the others do not (arXiv:2107.07651, equation 5).

    `match_valid` [B,C] says which pairs there are.
    """

    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        logits, valid = outputs["match_logits"].astype(jnp.float32), outputs["match_valid"]
        true = jnp.arange(logits.shape[1]) == 0
        if "mask" in batch:
            valid &= (batch["mask"] != 0)[:, None]
        loss = jax.nn.softplus(jnp.where(true, -logits, logits))
        return Mean.of(loss, valid), {"accuracy": Mean.of((logits > 0) == true, valid)}


def hard_negatives(
    rng: PRNGKeyArray,
    logits: Float[Array, "rows items"],
    allowed: Bool[Array, "rows items"],
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"]]:
    """An item for each row, drawn by the softmax of its logits over those allowed; and whether any
    is allowed, for the number says nothing where none is.
    """
    chosen = jax.random.categorical(rng, jnp.where(allowed, logits, -jnp.inf))
    return chosen, allowed.any(axis=1)
