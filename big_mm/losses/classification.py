"""Classification of images by the texts of the classes."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from big_mm.types import Batch, Mean, Outputs


@dataclasses.dataclass(frozen=True)
class ClassTexts:
    """Cross-entropy of each image's own class among all whose texts the batch holds
    (`transforms.ClassTexts`): the softmax of the scaled similarities (arXiv:2109.01134, eq. 1).

    Attributes:
      label: the batch's key with the class number, [B].
    """

    label: str = "label"
    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        cosine_BxC = jnp.einsum(
            "bd,cd->bc",
            outputs["image_embedding"],
            outputs["class_embedding"],
            precision=jax.lax.Precision.HIGHEST,
        )
        log_p_BxC = jax.nn.log_softmax(outputs["logit_scale"] * cosine_BxC, axis=-1)
        label, mask = batch[self.label], batch.get("mask")
        loss = -jnp.take_along_axis(log_p_BxC, label[:, None], axis=1)[:, 0]
        right = (cosine_BxC.argmax(axis=1) == label).astype(jnp.float32)
        return Mean.of(loss, mask), {"accuracy": Mean.of(right, mask)}
