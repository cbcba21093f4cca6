"""Contrast with what a teacher embedded, in this batch and before (`objectives/queue.py`)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_mm.types import Batch, Mean, Outputs

SIDES = ("image", "text")


@dataclasses.dataclass(frozen=True)
class MomentumContrast:
    """InfoNCE of the batch with a teacher's embeddings of the batch and of a queue, both ways; part
    of the target is the teacher's softmax (ALBEF, arXiv:2107.07651, equations 1, 2 and 6).

    Reads the student's and the teacher's `image_embedding` and `text_embedding` [B,D],
    `candidate_image` and `candidate_text` [K,D] and `candidate_valid` [K], the batch itself first;
    `positive` [B,K], which of them a row belongs to, in equal shares; and `alpha` [], the teacher's
    part of the target.
    """

    couples: ClassVar[tuple[str, ...]] = ("image_embedding", "text_embedding", "logit_scale")

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        positive_BxK, valid_K = outputs["positive"], outputs["candidate_valid"]
        own_BxK = positive_BxK / jnp.maximum(positive_BxK.sum(axis=1, keepdims=True), 1)
        alpha, total, metrics = outputs["alpha"], 0.0, {}
        for here, there in (SIDES, SIDES[::-1]):
            logits, taught = (
                jnp.where(valid_K, scores(outputs, f"{who}{here}", there), -1e9)
                for who in ("", "teacher_")
            )
            target = alpha * jax.nn.softmax(jax.lax.stop_gradient(taught)) + (1 - alpha) * own_BxK
            total -= (target * jax.nn.log_softmax(logits)).sum(axis=1) / 2
            found = jnp.take_along_axis(positive_BxK, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
            metrics[f"{here}_to_{there}_accuracy"] = Mean.of(found, valid_K[: len(found)])
        return Mean.of(total, valid_K[: len(total)]), metrics


def scores(outputs: Outputs, query: str, there: str) -> Float[Array, "batch candidates"]:
    """Scaled cosines of the `query`'s embeddings with the candidates `there`."""
    own, other = outputs[f"{query}_embedding"], outputs[f"candidate_{there}"]
    return outputs["logit_scale"] * jnp.matmul(own, other.T, precision=jax.lax.Precision.HIGHEST)
