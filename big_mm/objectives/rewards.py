"""Rewards of sampled captions that more than one method uses."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from big_mm.data.contract import Contract
from big_mm.data.records import Source
from big_mm.metrics import cider, clip_score, ptb
from big_mm.spec import UserError
from big_mm.types import Batch, Outputs


@dataclasses.dataclass(frozen=True)
class Rowwise:
    """What most rewards share: a caption's does not depend on other rows, nor on the contract."""

    couples: ClassVar[bool] = False

    def bind(self, contract: Contract) -> "Rowwise":
        del contract
        return self


@dataclasses.dataclass(frozen=True)
class ClipScore(Rowwise):
    """2.5 max(0, cosine) of image and caption, by the judge (arXiv:2104.08718)."""

    def __call__(self, written: Batch, batch: Batch, judged: Outputs) -> Float[Array, " batch"]:
        cosine = (judged["image_embedding"] * judged["text_embedding"]).sum(axis=-1)
        return clip_score.WEIGHT * jax.nn.relu(cosine)


@dataclasses.dataclass(frozen=True)
class Cider(Rowwise):
    """CIDEr-D against the batch's caption, computed on the host, by one process.

    Attributes:
      source: records whose captions give the document frequencies.
      limit: only the first records.
      contract: None for the run's.
    """

    source: Source
    limit: int = 2000
    contract: Contract | None = None

    def bind(self, contract: Contract) -> "Cider":
        if jax.process_count() > 1:
            raise UserError("the reward Cider is computed on one host: run one process")
        return dataclasses.replace(self, contract=self.contract or contract)

    @functools.cached_property
    def _frequency(self) -> cider.DocumentFrequency:
        records = (self.source[i] for i in range(min(self.limit, len(self.source))))
        return cider.DocumentFrequency.of([[_tokenize(t) for t in r["captions"]] for r in records])

    def __call__(self, written: Batch, batch: Batch, judged: Outputs) -> Float[Array, " batch"]:
        shape = jax.ShapeDtypeStruct((len(batch["tokens"]),), jnp.float32)
        return jax.pure_callback(self._score, shape, written["tokens"], batch["tokens"])

    def _score(self, written: Any, own: Any) -> np.ndarray:
        assert self.contract is not None
        said, references = (
            [_tokenize(text) for text in self.contract.detokenize(np.asarray(rows))]
            for rows in (written, own)
        )
        scores = cider.cider_d(said, [[text] for text in references], self._frequency)
        return scores.astype(np.float32)


@functools.lru_cache(maxsize=100_000)
def _tokenize(text: str) -> str:
    return ptb.tokenize(text)
