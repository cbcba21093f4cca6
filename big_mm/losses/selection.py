"""The tokens that stand for a row: those that meet their like on the other side."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from big_mm.losses.contrastive import Contrastive
from big_mm.spec import UserError
from big_mm.types import Batch, Mean, Outputs


@dataclasses.dataclass(frozen=True)
class Selected:
    """A contrastive loss over some of each image's patches and some of each text's words, chosen
    before devices exchange them (arXiv:2111.07783, section 3.1).

    A patch scores its largest cosine with any word of its group's texts, a word its largest with
    any patch of its group's images. Of each row the highest scores stay, on both sides and for both
    directions; what is left out is in no pair. A group is `group` rows of the batch, in its order:
    the paper's batch of one worker, here a number of its own, so that the loss does not depend on
    devices, tiles or microbatches. The choice has no gradient, the tokens that stay have.

    Attributes:
      loss: with a similarity of tokens, such as FILIP's.
      image_share: of the patches; rounded, at least one.
      text_share: of the slots of a text, padding among them, which is chosen last and is no word
        then: of 76 slots a quarter is all of a caption of 19 tokens.
      group: rows that score one another's tokens; 1 scores a row by its own pair. Where it divides
        the rows of a device, the choice needs no communication.
    """

    loss: Contrastive
    image_share: float = 0.25
    text_share: float = 0.25
    group: int = 32

    def __post_init__(self) -> None:
        similarity = self.loss.similarity
        if (len(similarity.image), len(similarity.text)) != (1, 2):
            raise UserError(
                f"Selected chooses among tokens, but {similarity} does not compare the tokens of "
                "an image with those of a text and their mask"
            )
        for name in ("image_share", "text_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be above 0 and at most 1")
        if self.group < 1:
            raise UserError(f"group={self.group} must be at least 1")

    @property
    def couples(self) -> tuple[str, ...]:
        return self.loss.couples

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        names = (*self.loss.similarity.image, *self.loss.similarity.text)
        image, text, word = (outputs[name] for name in names)
        if len(image) % self.group:
            raise UserError(f"group={self.group} does not divide the batch of {len(image)} rows")
        valid = batch["mask"] != 0 if "mask" in batch else jnp.ones(len(image), bool)
        patch, word = jnp.ones(image.shape[:2], bool), word != 0
        counted = image, text, patch & valid[:, None], word & valid[:, None]
        scores = best_cosines(*jax.lax.stop_gradient(counted), group=self.group)
        image, _ = highest(image, scores[0], patch, self.image_share)
        text, word = highest(text, scores[1], word, self.text_share)
        kept = dict(zip(names, (image, text, word.astype(jnp.float32)), strict=True))
        return self.loss(outputs | kept, batch)


def best_cosines(
    image: Float[Array, "batch patches width"],
    text: Float[Array, "batch words width"],
    patch: Bool[Array, "batch patches"],
    word: Bool[Array, "batch words"],
    *,
    group: int,
) -> tuple[Float[Array, "batch patches"], Float[Array, "batch words"]]:
    """Of each patch with the words, and of each word with the patches, of its group of rows.

    One text of each group is compared at a time: what is held is no larger than the tokens' pairs
    of equal rows.
    """
    image, text, patch, word = (
        x.reshape(-1, group, *x.shape[1:]) for x in (image, text, patch, word)
    )

    def one(
        best_GxIxP: Array, texts: tuple[Array, Array]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        words_GxLxD, word_GxL = texts
        cosine_GxIxPxL = jnp.einsum(
            "gipd,gld->gipl", image, words_GxLxD, precision=jax.lax.Precision.HIGHEST
        )
        by_patch = jnp.where(word_GxL[:, None, None], cosine_GxIxPxL, -1.0).max(axis=3)
        by_word = jnp.where(patch[..., None], cosine_GxIxPxL, -1.0).max(axis=(1, 2))
        return jnp.maximum(best_GxIxP, by_patch), by_word

    texts = jnp.moveaxis(text, 1, 0), jnp.moveaxis(word, 1, 0)
    patches, words = jax.lax.scan(one, jnp.full(patch.shape, -1.0), texts)
    return patches.reshape(-1, patch.shape[2]), jnp.moveaxis(words, 0, 1).reshape(-1, word.shape[2])


def highest(
    tokens: Float[Array, "batch length width"],
    scores: Float[Array, "batch length"],
    valid: Bool[Array, "batch length"],
    share: float,
) -> tuple[Float[Array, "batch kept width"], Bool[Array, "batch kept"]]:
    """The tokens of the highest scores, this share of the row's length (rounded, at least one), in
    their order; and which of them are valid. Those that are not are chosen last.
    """
    count = max(1, round(share * tokens.shape[1]))
    _, index = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), count)
    index = jnp.sort(index, axis=1)
    chosen = jnp.take_along_axis(tokens, index[..., None], axis=1)
    return chosen, jnp.take_along_axis(valid, index, axis=1)
