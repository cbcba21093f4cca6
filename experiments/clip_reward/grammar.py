"""A dual encoder that also says whether a caption is well-formed, and what it learns that from."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from big_mm.models.dual_encoder import DualEncoder
from big_mm.objectives.rewards import Rowwise
from big_mm.types import Batch, Mean, Outputs


class GrammarDualEncoder(DualEncoder):
    """With a head on the text before its projection: `grammar_logit` [B], above 0 if well-formed;
    `grammar_logit_corrupted` of the batch's `tokens_corrupted`.
    """

    def setup(self) -> None:
        super().setup()
        self.hidden = nn.Dense(self.embed_dim, use_bias=False)
        self.grammar = nn.Dense(1, use_bias=False)

    def encode_text(
        self,
        tokens: Int[Array, "batch length"],
        token_mask: Shaped[Array, "batch length"],
        *,
        train: bool = False,
    ) -> Outputs:
        out = self.text(tokens, token_mask, train=train)
        logit = self.grammar(nn.relu(self.hidden(out["pooled"])))[:, 0]
        return self._text_outputs(out) | {"grammar_logit": logit.astype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class GrammarLoss:
    """Cross-entropy: captions are well-formed, the corrupted ones are not."""

    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        right, wrong = outputs["grammar_logit"], -outputs["grammar_logit_corrupted"]
        margins = jnp.stack([right, wrong], axis=1)
        valid = batch["mask"][:, None] if "mask" in batch else None
        loss = Mean.of(-jax.nn.log_sigmoid(margins), valid)
        return loss, {"accuracy": Mean.of(margins > 0, valid)}


@dataclasses.dataclass(frozen=True)
class Grammar(Rowwise):
    """The reward: the judge's probability that the caption is well-formed."""

    def __call__(self, written: Batch, batch: Batch, judged: Outputs) -> Float[Array, " batch"]:
        return jax.nn.sigmoid(judged["grammar_logit"])
