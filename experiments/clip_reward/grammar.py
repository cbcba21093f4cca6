"""A dual encoder that also says whether a caption is well-formed, and what it learns that from."""

import dataclasses
from typing import ClassVar

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from big_mm.data.transforms import Record
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.heads import unit
from big_mm.objectives.rewards import Rowwise
from big_mm.spec import UserError
from big_mm.types import Batch, Mean, Outputs

RUN, TIMES = 3, 3  # the longest run of words that is repeated or left out; how often


@dataclasses.dataclass(frozen=True)
class Corrupt(grain.transforms.RandomMap):
    """Spoils a caption by one of the five ways of CLIP-Caption-Reward: a run of words is repeated
    at random places or left out, words of `words` are inserted or put in others' place, or all
    words are shuffled. The result always differs from the caption.
    """

    words: tuple[str, ...]
    key: str = "caption"
    out: str = "corrupted"

    def __post_init__(self) -> None:
        if len(set(self.words)) < 2:
            raise UserError(f"Corrupt: words={self.words} must be two or more")

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        said = record[self.key].split()
        ways = (self._repeated, self._shortened, self._inserted, self._replaced, self._shuffled)
        spoilt = said
        while spoilt == said:
            spoilt = ways[int(rng.integers(len(ways)))](said, rng)
        return record | {self.out: " ".join(spoilt)}

    def _repeated(self, said: list[str], rng: np.random.Generator) -> list[str]:
        start, end = _run(said, rng)
        spoilt = said
        for _ in range(int(rng.integers(1, TIMES + 1))):
            place = int(rng.integers(len(spoilt) + 1))
            spoilt = [*spoilt[:place], *said[start:end], *spoilt[place:]]
        return spoilt

    def _shortened(self, said: list[str], rng: np.random.Generator) -> list[str]:
        start, end = _run(said, rng)
        return [*said[:start], *said[end:]]

    def _inserted(self, said: list[str], rng: np.random.Generator) -> list[str]:
        spoilt = said
        for _ in range(int(rng.integers(1, TIMES + 1))):
            place = int(rng.integers(len(spoilt)))
            spoilt = [*spoilt[:place], self._word(rng), *spoilt[place:]]
        return spoilt

    def _replaced(self, said: list[str], rng: np.random.Generator) -> list[str]:
        spoilt = list(said)
        for _ in range(int(rng.integers(1, TIMES + 1))):
            spoilt[int(rng.integers(len(spoilt)))] = self._word(rng)
        return spoilt

    def _shuffled(self, said: list[str], rng: np.random.Generator) -> list[str]:
        return [said[i] for i in rng.permutation(len(said))]

    def _word(self, rng: np.random.Generator) -> str:
        return self.words[int(rng.integers(len(self.words)))]


def _run(said: list[str], rng: np.random.Generator) -> tuple[int, int]:
    length = int(rng.integers(1, min(RUN, len(said)) + 1))
    start = int(rng.integers(len(said) - length + 1))
    return start, start + length


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
        embedding = unit(self.text_head(out["pooled"]))
        return {
            "text_embedding": embedding,
            "text_tokens": out["tokens"],
            "grammar_logit": logit.astype(jnp.float32),
        }


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
