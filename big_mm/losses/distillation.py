"""A student learns a teacher's distribution (arXiv:2104.14294, 2111.07832)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from big_mm.types import Batch, Mean, Outputs


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The cross-entropy of a teacher's distribution over prototypes and the student's.

    Attributes:
      student: the output with cosines [B,N,K].
      teacher: the output with probabilities [B,N,K], or of the whole image [B,1,K].
      mask: the output that says which of the N count [B,N]; "" for all.
      temperature: of the student's softmax.
    """

    student: str
    teacher: str
    mask: str = ""
    temperature: float = 0.1
    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        target = outputs[self.teacher]
        logs = jax.nn.log_softmax(outputs[self.student] / self.temperature)
        loss = -(target * logs).sum(axis=-1)
        weight = outputs[self.mask] if self.mask else jnp.ones(loss.shape, bool)
        if "mask" in batch:
            weight &= (batch["mask"] != 0)[:, None]
        entropy = -(target * jnp.log(jnp.maximum(target, 1e-20))).sum(axis=-1)
        return Mean.of(loss, weight), {"teacher_entropy": Mean.of(entropy)}
