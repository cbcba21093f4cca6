"""Contrastive losses between the image and text embeddings of a batch.

Written on the global batch. How its matrix of logits is laid out over devices and in memory is an
option, which changes neither values nor gradients: see `pairwise`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from big_mm.losses.exchange import Layout
from big_mm.losses.pairwise import Pairs, Reduced, Rows, reduce_pairs
from big_mm.spec import UserError
from big_mm.types import Batch, Mean, Outputs

Shared = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The options of the losses below.

    Attributes:
      image, text: the outputs to compare, [B,D] of unit length: a second caption's, a teacher's.
      positives: the batch key of an id [B]; pairs of equal id are positives of one another. By
        default a row is positive with itself only.
      weights: the output with a factor [B] on the loss of each row, as image and as text; none by
        default. The mean is still over rows.
      exchange: how a device meets the texts of others: "gather" holds all of them, "ring" passes
        them on in blocks, for batches whose embeddings alone are too large.
      tile: the side of the largest part of the matrix of logits that is in memory at once, in
        either pass, for a third more matrix products. 0 for all that a device has of it.
    """

    image: str = "image_embedding"
    text: str = "text_embedding"
    positives: str = ""
    weights: str = ""
    exchange: str = "gather"
    tile: int = 0

    def __post_init__(self) -> None:
        Layout(self.exchange, self.tile, None)  # refuses what makes no sense

    @property
    def couples(self) -> tuple[str, ...]:
        weights = (self.weights,) if self.weights else ()
        return (self.image, self.text, *weights, "logit_scale", "logit_bias")

    def _sides(self, outputs: Outputs, batch: Batch) -> tuple[Rows, Rows]:
        image, text = outputs[self.image], outputs[self.text]
        valid = batch["mask"] != 0 if "mask" in batch else jnp.ones(len(image), bool)
        if self.positives and self.positives not in batch:
            raise UserError(f"positives={self.positives!r} is no key of the batch: {sorted(batch)}")
        ids = batch[self.positives] if self.positives else jnp.arange(len(image))
        return Rows.of(image, ids, valid), Rows.of(text, ids, valid)

    def _mean(
        self, loss: Float[Array, " batch"], outputs: Outputs, valid: Bool[Array, " batch"]
    ) -> Mean:
        return Mean.of(loss * outputs[self.weights] if self.weights else loss, valid)

    def _metrics(
        self, sides: tuple[Rows, Rows], reduced: tuple[Reduced, Reduced]
    ) -> dict[str, Mean]:
        names = ("image_to_text_accuracy", "text_to_image_accuracy")
        return {
            name: Mean.of(side.labels[found.best] == side.labels, side.valid)
            for name, side, found in zip(names, sides, reduced, strict=True)
        }


def _similarity(image: Rows, text: Rows) -> Float[Array, "images texts"]:
    """Cosines in full float32: at a scale of 100, an error of 0.004 is 0.4."""
    return jnp.einsum("id,td->it", image.values, text.values, precision=jax.lax.Precision.HIGHEST)


def _positive(image: Rows, text: Rows) -> Bool[Array, "images texts"]:
    return image.labels[:, None] == text.labels[None, :]


@dataclasses.dataclass(frozen=True)
class Softmax(Contrastive):
    """Symmetric InfoNCE (arXiv:2103.00020): each image finds its text among the batch's, and back.

    Several positives have equal shares of the target. Options: `Contrastive`.
    """

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        sides = self._sides(outputs, batch)
        shared = {"scale": outputs["logit_scale"]}
        rows, columns = reduce_pairs(
            _softmax, shared, *sides, exchange=self.exchange, tile=self.tile
        )
        loss = (_cross_entropy(rows) + _cross_entropy(columns)) / 2
        metrics = {"logit_scale": Mean.of(outputs["logit_scale"])}
        loss = self._mean(loss, outputs, sides[0].valid)
        return loss, self._metrics(sides, (rows, columns)) | metrics


def _softmax(shared: Shared, image: Rows, text: Rows) -> tuple[Pairs, Pairs]:
    logits = shared["scale"] * _similarity(image, text)
    positive = _positive(image, text)
    terms = {"positives": positive, "target": jnp.where(positive, logits, 0.0)}
    both = Pairs(logits, {"logits": logits}, terms)
    return both, both


def _cross_entropy(reduced: Reduced) -> Float[Array, " batch"]:
    target = reduced.terms["target"] / jnp.maximum(reduced.terms["positives"], 1)
    return reduced.exponents["logits"] - target


@dataclasses.dataclass(frozen=True)
class Sigmoid(Contrastive):
    """SigLIP (arXiv:2303.15343): each pair of image and text is a yes-or-no question.

    The sum over pairs, divided by the number of images. Needs `logit_bias`. Options: `Contrastive`.
    """

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        sides = self._sides(outputs, batch)
        shared = {"scale": outputs["logit_scale"], "bias": outputs["logit_bias"]}
        rows, columns = reduce_pairs(
            _sigmoid, shared, *sides, exchange=self.exchange, tile=self.tile
        )
        metrics = {name: Mean.of(outputs[name]) for name in ("logit_scale", "logit_bias")}
        loss = self._mean(rows.terms["loss"], outputs, sides[0].valid)
        return loss, self._metrics(sides, (rows, columns)) | metrics


def _sigmoid(shared: Shared, image: Rows, text: Rows) -> tuple[Pairs, Pairs]:
    logits = shared["scale"] * _similarity(image, text) + shared["bias"]
    answers = jnp.where(_positive(image, text), logits, -logits)
    return Pairs(logits, {}, {"loss": -jax.nn.log_sigmoid(answers)}), Pairs(logits, {}, {})
