"""Cross-entropy of the next token."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from big_mm import mesh
from big_mm.spec import UserError
from big_mm.types import Batch, Mean, Outputs

Terms = dict[str, Float[Array, "batch length"]]


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The mean over the tokens of all captions, bos and padding excluded, of -log p(token | past).

    Attributes:
      label_smoothing: this share of the target is spread evenly over the vocabulary.
      z_loss: weight of the squared log of the softmax's denominator (arXiv:2204.02311, section 5),
        which keeps the logits from drifting.
      chunks: above 1, the logits [B,L,V] are never held at once, in either pass: they are computed
        from `caption_features` and `caption_kernel` for one part of the length after the other.
        The number divides the batch's length.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunks: int = 1
    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        # The last position has no target: it gets the weight zero, which is cheaper than a slice of
        # the logits and leaves a length that chunks divide.
        target = jnp.pad(batch["tokens"][:, 1:], ((0, 0), (0, 1)))
        weight = jnp.pad(batch["token_mask"][:, 1:] != 0, ((0, 0), (0, 1)))
        if "mask" in batch:
            weight &= (batch["mask"] != 0)[:, None]
        if self.chunks > 1 and "caption_features" in outputs:
            terms = self._chunked(outputs["caption_features"], outputs["caption_kernel"], target)
        else:
            terms = self._terms(outputs["caption_logits"], target)
        metrics = {"accuracy": Mean.of(terms["correct"], weight)}
        if self.label_smoothing or self.z_loss:
            metrics["nll"] = Mean.of(terms["nll"], weight)
        return Mean.of(terms["loss"], weight), metrics

    def _terms(
        self, logits: Float[Array, "batch length vocab"], target: Int[Array, "batch length"]
    ) -> Terms:
        logits = logits.astype(jnp.float32)
        is_target = jnp.arange(logits.shape[-1]) == target[..., None]
        top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        total = jnp.log(jnp.exp(logits - top).sum(axis=-1)) + top[..., 0]
        # A sum, not a gather: its gradient is no scatter, and the vocabulary may be sharded.
        chosen = jnp.where(is_target, logits, 0.0).sum(axis=-1)
        loss = nll = total - chosen
        if self.label_smoothing:
            even = total - logits.mean(axis=-1)
            loss = (1 - self.label_smoothing) * nll + self.label_smoothing * even
        if self.z_loss:
            loss += self.z_loss * total**2
        return {"loss": loss, "nll": nll, "correct": (chosen >= top[..., 0]).astype(jnp.float32)}

    def _chunked(
        self,
        features: Float[Array, "batch length width"],
        kernel: Float[Array, "width vocab"],
        target: Int[Array, "batch length"],
    ) -> Terms:
        batch, length = target.shape
        if length % self.chunks:
            raise UserError(f"chunks={self.chunks} does not divide captions of {length} tokens")

        @jax.checkpoint
        def one(part: tuple[Array, Array]) -> Terms:
            logits = jnp.matmul(mesh.by_rows(part[0]), kernel, preferred_element_type=jnp.float32)
            return self._terms(logits, part[1])

        def split(x: Array) -> Array:
            parts = x.reshape(batch, self.chunks, length // self.chunks, *x.shape[2:])
            return jnp.moveaxis(parts, 1, 0)

        terms = jax.lax.map(one, (split(features), split(target)))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, length), terms)
