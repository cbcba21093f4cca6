"""Masked language modelling: which tokens are hidden, and the loss of what the model puts there."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from big_mm.types import Batch, Mean, Outputs

# What stands in for a masked token: the mask token, any token, itself (arXiv:1810.04805).
_MASK, _RANDOM = 0.8, 0.1


def mask_tokens(
    rng: PRNGKeyArray,
    tokens: Int[Array, "batch length"],
    token_mask: Shaped[Array, "batch length"],
    *,
    share: float,
    mask_id: int,
    vocab_size: int,
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """The tokens with some of them masked, and which these are (arXiv:1810.04805, section 3.1).

    Every token but bos and padding is masked with probability `share`. Of those eight in ten become
    `mask_id`, one any token below `vocab_size`, one stays.
    """
    rngs = jax.random.split(rng, 3)
    maskable = (token_mask != 0) & (jnp.arange(tokens.shape[1]) > 0)
    masked = maskable & (jax.random.uniform(rngs[0], tokens.shape) < share)
    kind = jax.random.uniform(rngs[1], tokens.shape)
    other = jax.random.randint(rngs[2], tokens.shape, 0, vocab_size, tokens.dtype)
    shown = jnp.where(kind < _MASK, mask_id, jnp.where(kind < _MASK + _RANDOM, other, tokens))
    return jnp.where(masked, shown, tokens), masked


@dataclasses.dataclass(frozen=True)
class MaskedTokens:
    """The mean over masked tokens (`word_mask` [B,L]) of -log p(token), by `word_logits` [B,L,V].

    With `teacher_word_logits` the share `alpha` [] of the target is the teacher's distribution
    (momentum distillation, arXiv:2107.07651, equation 7).
    """

    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        logs = jax.nn.log_softmax(outputs["word_logits"].astype(jnp.float32))
        target = batch["tokens"]
        loss = -jnp.take_along_axis(logs, target[..., None], axis=-1)[..., 0]
        if "teacher_word_logits" in outputs:
            taught = jax.nn.softmax(outputs["teacher_word_logits"].astype(jnp.float32))
            alpha = outputs["alpha"]
            loss = (1 - alpha) * loss - alpha * (taught * logs).sum(axis=-1)
        mask = outputs["word_mask"]
        if "mask" in batch:
            mask &= (batch["mask"] != 0)[:, None]
        return Mean.of(loss, mask), {"accuracy": Mean.of(logs.argmax(axis=-1) == target, mask)}
