"""The documented keys of batches and outputs, and what loss terms return.

A batch and a model's outputs are flat dicts with the batch axis first. A missing modality is a
missing key, never None. Extra keys are free.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Batch = dict[str, Any]
Outputs = dict[str, Any]

BATCH = {
    "image": "[B,H,W,3] uint8 RGB; becomes float inside the model",
    "patch_mask": "[B,P] bool: patches that the mask token hides, for towers with mask_token=True",
    "target_image": "[B,H,W,3] uint8 RGB: what `image` becomes by the edit that `tokens` say",
    "tokens": "[B,L] int32: bos, words, eos, then pad",
    "token_mask": "[B,L] bool: true from bos to eos",
    "text_id": "[B] int32: equal for equal tokens",
    "label": "[B] int32 class, where the source has one",
    "class_tokens": "[B,C,L] int32: the texts of all classes, the same in every row",
    "class_token_mask": "[B,C,L] bool",
    "mask": "[B] bool: false for the padding rows of a ragged batch",
    "key": "[B] text naming the record; host only",
    "bad_index": "[B] int64: the damaged record that this row replaces, or -1; host only",
    "bad_kind": "[B] int32: index into records.DAMAGE, or -1; host only",
}
HOST_ONLY = ("key", "bad_index", "bad_kind")

OUTPUTS = {
    "image_embedding": "[B,D] float32, unit length",
    "text_embedding": "[B,D] float32, unit length",
    "query_embedding": "[B,D] float32, unit length: image and text together, as a query for images",
    "target_embedding": "[B,D] float32, unit length: of `target_image`",
    "class_embedding": "[C,D] float32, unit length: of the batch's class texts",
    "image_features": "[B,W] float32: pooled, before the projection to the shared space",
    "image_tokens": "[B,N,W] what the caption decoder attends to",
    "patch_tokens": "[B,P,W] normed tokens of the image tower's patches alone, row by row",
    "text_tokens": "[B,L,W] of the unimodal text tower",
    "caption_logits": "[B,L,V] float32: position i predicts token i+1",
    "match_logit": "[B] log odds that an image and a text belong together",
    "match_logits": "[B,C] of a row's own pair, then of pairs that do not belong together",
    "match_valid": "[B,C] bool: which of these pairs there are",
    "word_logits": "[B,L,V] what a bidirectional reader takes each token to be",
    "word_mask": "[B,L] bool: the tokens that were masked",
    "logit_scale": "[] float32: the inverse temperature of the similarities",
    "logit_bias": "[] float32: added to the scaled similarities of the sigmoid loss",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that is still a sum and a count: it adds exactly over rows, steps and devices.

    Both are float32 scalars, or whatever a map over the tree put in their place.
    """

    total: Any
    count: Any

    @classmethod
    def of(cls, values: Shaped[Array, "..."], mask: Any = None) -> "Mean":
        """The mean of `values` where `mask` (broadcastable, any dtype) is not zero."""
        values = values.astype(jnp.float32)
        weight = (
            jnp.ones_like(values) if mask is None else jnp.broadcast_to(mask != 0, values.shape)
        )
        return cls(jnp.where(weight, values, 0.0).sum(), weight.sum(dtype=jnp.float32))

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> Float[Array, "..."]:
        """The mean; zero when nothing was counted."""
        return self.total / jnp.maximum(self.count, 1e-12)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aux:
    """What a loss says besides its value: terms, other metrics, and what `update_extra` needs."""

    terms: dict[str, Mean]
    metrics: dict[str, Mean] = dataclasses.field(default_factory=dict)
    carry: Any = None
