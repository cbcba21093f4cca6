"""Contrastive losses between the image and text embeddings of a batch.

Written on the global batch: under jit the compiler gathers what other devices hold.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from big_mm.types import Batch, Mean, Outputs


def _rows(batch: Batch, count: int) -> Bool[Array, " batch"]:
    return batch["mask"] != 0 if "mask" in batch else jnp.ones(count, bool)


def _similarity(outputs: Outputs) -> Float[Array, "batch batch"]:
    """Cosines [image, text], in full float32: at a scale of 100, an error of 0.004 is 0.4."""
    return jnp.matmul(
        outputs["image_embedding"], outputs["text_embedding"].T, precision=jax.lax.Precision.HIGHEST
    )


def _positives(batch: Batch, key: str, count: int) -> Bool[Array, "batch batch"]:
    if not key:
        return jnp.eye(count, dtype=bool)
    return batch[key][:, None] == batch[key][None, :]


def _accuracy(
    logits: Float[Array, "batch batch"], positive: Bool[Array, "batch batch"]
) -> Float[Array, " batch"]:
    best = logits.argmax(axis=1)
    return jnp.take_along_axis(positive, best[:, None], axis=1)[:, 0].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Symmetric InfoNCE (arXiv:2103.00020): each image finds its text among the batch's, and back.

    Attributes:
      positives: the batch key of an id [B]; pairs of equal id are positives of one another, with
        equal shares of the target. By default a row is positive with itself only.
    """

    positives: str = ""
    couples: ClassVar[tuple[str, ...]] = ("image_embedding", "text_embedding", "logit_scale")

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        logits = outputs["logit_scale"] * _similarity(outputs)
        valid = _rows(batch, len(logits))
        positive = _positives(batch, self.positives, len(logits)) & valid[None, :]
        image_to_text = _cross_entropy(logits, positive, valid)
        text_to_image = _cross_entropy(logits.T, positive, valid)
        masked = jnp.where(valid[:, None] & valid[None, :], logits, -jnp.inf)
        metrics = {
            "image_to_text_accuracy": Mean.of(_accuracy(masked, positive), valid),
            "text_to_image_accuracy": Mean.of(_accuracy(masked.T, positive), valid),
            "logit_scale": Mean.of(outputs["logit_scale"]),
        }
        return Mean.of((image_to_text + text_to_image) / 2, valid), metrics


def _cross_entropy(
    logits: Float[Array, "batch batch"],
    positive: Bool[Array, "batch batch"],
    valid: Bool[Array, " batch"],
) -> Float[Array, " batch"]:
    logits = jnp.where(valid[None, :], logits, -1e30)
    total = jax.nn.logsumexp(logits, axis=1)
    share = positive / jnp.maximum(positive.sum(axis=1, keepdims=True), 1)
    return total - (logits * share).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """SigLIP (arXiv:2303.15343): each pair of image and text is a yes-or-no question.

    The sum over pairs, divided by the number of images. Needs `logit_bias`.

    Attributes:
      positives: as of `Softmax`.
    """

    positives: str = ""
    couples: ClassVar[tuple[str, ...]] = (*Softmax.couples, "logit_bias")

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        logits = outputs["logit_scale"] * _similarity(outputs) + outputs["logit_bias"]
        valid = _rows(batch, len(logits))
        positive = _positives(batch, self.positives, len(logits))
        pairs = valid[:, None] & valid[None, :]
        losses = -jax.nn.log_sigmoid(jnp.where(positive, logits, -logits))
        losses = jnp.where(pairs, losses, 0.0).sum(axis=1)
        masked = jnp.where(pairs, logits, -jnp.inf)
        metrics = {
            "image_to_text_accuracy": Mean.of(_accuracy(masked, positive), valid),
            "text_to_image_accuracy": Mean.of(_accuracy(masked.T, positive), valid),
            "logit_scale": Mean.of(outputs["logit_scale"]),
            "logit_bias": Mean.of(outputs["logit_bias"]),
        }
        return Mean.of(losses, valid), metrics
