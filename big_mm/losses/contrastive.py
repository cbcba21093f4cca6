"""Contrastive losses between the image and text embeddings of a batch.

Written on the global batch. How its matrix of logits is laid out over devices and in memory is an
option, which changes neither values nor gradients: see `pairwise`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from big_mm.losses.exchange import Layout
from big_mm.losses.pairwise import Pairs, Reduced, Rows, reduce_pairs
from big_mm.similarity import Cosine, Similarity
from big_mm.spec import UserError, choose
from big_mm.types import Batch, Mean, Outputs

Shared = dict[str, Float[Array, ""]]
DIRECTIONS = ("both", "image_to_text")


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The options of the losses below.

    Attributes:
      similarity: of images and texts.
      positives: the batch key of an id [B]; pairs of equal id are positives of one another. By
        default a row is positive with itself only.
      weights: the output with a factor [B] on the loss of each row, as image and as text; none by
        default. The mean is still over rows.
      exchange: how a device meets the texts of others: "gather" holds all of them, "ring" passes
        them on in blocks, for batches whose embeddings alone are too large.
      tile: the side of the largest part of the matrix of logits that is in memory at once, in
        either pass, for a third more matrix products. 0 for all that a device has of it.
    """

    similarity: Similarity = Cosine()
    positives: str = ""
    weights: str = ""
    exchange: str = "gather"
    tile: int = 0

    def __post_init__(self) -> None:
        Layout(self.exchange, self.tile, None)  # refuses what makes no sense

    @property
    def couples(self) -> tuple[str, ...]:
        weights = (self.weights,) if self.weights else ()
        return (
            *self.similarity.image,
            *self.similarity.text,
            *weights,
            "logit_scale",
            "logit_bias",
        )

    def _reduce(
        self, pairs: Callable[..., tuple[Pairs, Pairs]], shared: Shared, sides: tuple[Rows, Rows]
    ) -> tuple[Reduced, Reduced]:
        bound = functools.partial(pairs, self.similarity)
        return reduce_pairs(bound, shared, *sides, exchange=self.exchange, tile=self.tile)

    def _sides(self, outputs: Outputs, batch: Batch) -> tuple[Rows, Rows]:
        values = [
            {name: outputs[name] for name in names}
            for names in (self.similarity.image, self.similarity.text)
        ]
        rows = len(jax.tree.leaves(values)[0])
        valid = batch["mask"] != 0 if "mask" in batch else jnp.ones(rows, bool)
        if self.positives and self.positives not in batch:
            raise UserError(f"positives={self.positives!r} is no key of the batch: {sorted(batch)}")
        ids = batch[self.positives] if self.positives else jnp.arange(rows)
        labels = {"id": ids, "negative": jnp.zeros(rows, bool)}
        image, text = (Rows.of(value, labels, valid) for value in values)
        return image, text

    def _mean(
        self, loss: Float[Array, " batch"], outputs: Outputs, valid: Bool[Array, " batch"]
    ) -> Mean:
        return Mean.of(loss * outputs[self.weights] if self.weights else loss, valid)

    def _metrics(
        self, sides: tuple[Rows, Rows], reduced: tuple[Reduced, Reduced]
    ) -> dict[str, Mean]:
        names = ("image_to_text_accuracy", "text_to_image_accuracy")
        made = {}
        for name, side, other, found in zip(names, sides, sides[::-1], reduced, strict=True):
            right = other.labels["id"][found.best] == side.labels["id"]
            right &= ~other.labels["negative"][found.best] & ~side.labels["negative"]
            made[name] = Mean.of(right, side.valid & ~side.labels["negative"])
        return made


def _positive(image: Rows, text: Rows) -> Bool[Array, "images texts"]:
    same = image.labels["id"][:, None] == text.labels["id"][None, :]
    return same & ~text.labels["negative"][None, :]


@dataclasses.dataclass(frozen=True)
class Softmax(Contrastive):
    """Symmetric InfoNCE (arXiv:2103.00020): each image finds its text among the batch's, and back.

    Several positives have equal shares of the target. Options: `Contrastive`, and

    Attributes:
      negatives: outputs, each a row for each of the batch, that images also choose among and that
        are no image's text: the query's own image (arXiv:2403.19651), a text with swapped words.
        They ask for no image themselves.
      directions: "both", or "image_to_text" where texts do not look for images.
    """

    negatives: tuple[str, ...] = ()
    directions: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("directions", self.directions, DIRECTIONS)
        if self.negatives and len(self.similarity.text) != 1:
            raise UserError(
                f"negatives={self.negatives} stand beside one output of texts, and the similarity "
                f"compares {self.similarity.text}"
            )

    @property
    def couples(self) -> tuple[str, ...]:
        return (*super().couples, *self.negatives)

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        image, text = self._sides(outputs, batch)
        sides = image, self._with_negatives(text, outputs)
        rows, columns = self._reduce(_softmax, {"scale": outputs["logit_scale"]}, sides)
        loss = _cross_entropy(rows)
        if self.directions == "both":
            loss = (loss + _cross_entropy(columns)[: len(loss)]) / 2
        metrics = {"logit_scale": Mean.of(outputs["logit_scale"])}
        loss = self._mean(loss, outputs, image.valid)
        return loss, self._metrics(sides, (rows, columns)) | metrics

    def _with_negatives(self, text: Rows, outputs: Outputs) -> Rows:
        """The texts, and behind them the further rows."""
        if not self.negatives:
            return text
        (name,), times = self.similarity.text, 1 + len(self.negatives)
        values = jnp.concatenate([text.values[name], *(outputs[n] for n in self.negatives)])
        ids, valid = jnp.tile(text.labels["id"], times), jnp.tile(text.valid, times)
        further = jnp.arange(len(valid)) >= len(text.valid)
        return Rows.of({name: values}, {"id": ids, "negative": further}, valid)


def _softmax(
    similarity: Similarity, shared: Shared, image: Rows, text: Rows
) -> tuple[Pairs, Pairs]:
    positive = _positive(image, text)

    def pairs(scores: Float[Array, "images texts"]) -> Pairs:
        logits = shared["scale"] * scores
        terms = {"positives": positive, "target": jnp.where(positive, logits, 0.0)}
        return Pairs(scores, {"logits": logits}, terms)

    to_text, to_image = similarity(image.values, text.values)
    by_image = pairs(to_text)
    return by_image, by_image if to_image is to_text else pairs(to_image)


def _cross_entropy(reduced: Reduced) -> Float[Array, " batch"]:
    target = reduced.terms["target"] / jnp.maximum(reduced.terms["positives"], 1)
    return reduced.exponents["logits"] - target


@dataclasses.dataclass(frozen=True)
class Sigmoid(Contrastive):
    """SigLIP (arXiv:2303.15343): each pair of image and text is a yes-or-no question.

    The sum over pairs, divided by the number of images. Needs `logit_bias`. A similarity with two
    directions counts by that of images to texts. Options: `Contrastive`.
    """

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        sides = self._sides(outputs, batch)
        shared = {"scale": outputs["logit_scale"], "bias": outputs["logit_bias"]}
        rows, columns = self._reduce(_sigmoid, shared, sides)
        metrics = {name: Mean.of(outputs[name]) for name in ("logit_scale", "logit_bias")}
        loss = self._mean(rows.terms["loss"], outputs, sides[0].valid)
        return loss, self._metrics(sides, (rows, columns)) | metrics


def _sigmoid(
    similarity: Similarity, shared: Shared, image: Rows, text: Rows
) -> tuple[Pairs, Pairs]:
    to_text, to_image = similarity(image.values, text.values)
    logits = shared["scale"] * to_text + shared["bias"]
    answers = jnp.where(_positive(image, text), logits, -logits)
    return Pairs(to_text, {}, {"loss": -jax.nn.log_sigmoid(answers)}), Pairs(to_image, {}, {})
