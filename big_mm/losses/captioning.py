"""Cross-entropy of the next token."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from big_mm.types import Batch, Mean, Outputs


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The mean over the tokens of all captions, bos and padding excluded, of -log p(token | past).

    Attributes:
      label_smoothing: this share of the target is spread evenly over the vocabulary.
      z_loss: weight of the squared log of the softmax's denominator (PaLM), which keeps the logits
        from drifting.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    batch_coupled: ClassVar[bool] = False

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        logits = outputs["caption_logits"][:, :-1].astype(jnp.float32)
        target = batch["tokens"][:, 1:]
        weight = batch["token_mask"][:, 1:] != 0
        if "mask" in batch:
            weight &= (batch["mask"] != 0)[:, None]
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        losses = total - chosen
        metrics = {"accuracy": Mean.of(chosen >= logits.max(axis=-1), weight)}
        if self.label_smoothing or self.z_loss:
            metrics["nll"] = Mean.of(losses, weight)
        if self.label_smoothing:
            even = total - logits.mean(axis=-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * even
        losses += self.z_loss * total**2
        return Mean.of(losses, weight), metrics
