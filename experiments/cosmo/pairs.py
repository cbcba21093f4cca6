"""The contrastive loss of all pairs in interleaved documents."""

import dataclasses

import jax.numpy as jnp

from big_mm.losses.contrastive import Softmax
from big_mm.types import Batch, Mean, Outputs


@dataclasses.dataclass(frozen=True)
class PairSoftmax(Softmax):
    """`Softmax` over the pairs of all documents, whose embeddings are [documents, pairs, dim]."""

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        names = (*self.similarity.image, *self.similarity.text)
        flat = {name: outputs[name].reshape(-1, outputs[name].shape[-1]) for name in names}
        media = outputs[names[0]].shape[1]
        rows = {self.positives: batch[self.positives].reshape(-1)} if self.positives else {}
        if "mask" in batch:
            rows["mask"] = jnp.repeat(batch["mask"], media)
        return super().__call__(outputs | flat, rows)
