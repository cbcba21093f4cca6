"""Attentive masks, the second pass on the masked image, and the loss of its pixels."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from big_mm.models.vision import VisionTransformer, mask_lowest, patchify
from big_mm.objectives.base import Weighted
from big_mm.spec import UserError, choose
from big_mm.types import Batch, Mean, Outputs

PATCHES = ("relevant", "irrelevant", "random")


@dataclasses.dataclass(frozen=True)
class Mask:
    """Masks a share of each image's patches, chosen by their relevance to its caption.

    Attributes:
      patches: which are masked, the most or the least "relevant", or "random" ones.
      ratio: their share, rounded to whole patches.
    """

    patches: str = "relevant"
    ratio: float = 0.5

    def __post_init__(self) -> None:
        choose("patches", self.patches, PATCHES)
        if not 0 < self.ratio < 1:
            raise UserError(f"Mask: ratio={self.ratio} must be between 0 and 1")

    def __call__(
        self, relevance: Float[Array, "batch patches"], rng: Array
    ) -> Bool[Array, "batch patches"]:
        if self.patches == "random":
            scores = jax.random.uniform(rng, relevance.shape)
        else:
            scores = relevance if self.patches == "irrelevant" else -relevance
        return mask_lowest(scores, self.ratio)


@dataclasses.dataclass(frozen=True)
class MaskedPixels:
    """The mean squared error of the masked patches' normalised pixels."""

    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        error = jnp.square(outputs["pixels"] - outputs["true_pixels"]).mean(axis=-1)
        mask = outputs["patch_mask"]
        if "mask" in batch:
            mask &= (batch["mask"] != 0)[:, None]
        return Mean.of(error, mask), {}


@dataclasses.dataclass(frozen=True, eq=False)
class Symmetric(Weighted):
    """CoCa's terms, and outputs for a third: the pixels of masked patches, guided by the caption.

    Attributes:
      mask: of the image that is reconstructed.
      caption_mask: of the image that is captioned in training; None shows all of it.
    """

    mask: Mask = Mask()
    caption_mask: Mask | None = None

    def forward(self, params: Any, extra: Any, batch: Batch, rng: Array) -> Outputs:
        """CoCa's outputs, and of the second pass `pixels`, `true_pixels` and `patch_mask`."""
        outputs = super().forward(params, extra, batch, rng)
        keys = jax.random.split(jax.random.fold_in(rng, 1), 4)

        def apply(*args: Any, method: str, **options: Any) -> Any:
            return self.model.apply({"params": params}, *args, method=method, **options)

        found = jax.lax.stop_gradient(outputs)
        patches = apply(found["patch_tokens"], method="patch_embeddings")
        scores = jnp.einsum("bpd,bd->bp", patches, found["text_embedding"])
        scores = jax.lax.stop_gradient(scores)
        if self.caption_mask is not None:
            shown = batch | {"patch_mask": self.caption_mask(scores, keys[0])}
            options = {"train": True, "rngs": {"dropout": keys[1]}}
            again = apply(shown, method="__call__", **options)
            names = ("caption_logits", "caption_features", "caption_kernel", "image_tokens")
            outputs |= {name: again[name] for name in names}
        mask = self.mask(scores, keys[2])
        inputs = batch["image"], mask, outputs["text_tokens"], batch["token_mask"]
        options = {"train": True, "rngs": {"dropout": keys[3]}}
        return outputs | {
            "pixels": apply(*inputs, method="reconstruct", **options),
            "true_pixels": true_pixels(self.model.image, batch["image"]),
            "patch_mask": mask,
        }


def true_pixels(
    tower: VisionTransformer, image: Num[Array, "batch height width 3"]
) -> Float[Array, "batch patches pixels"]:
    """The patches as the tower sees them: normalised, each flattened."""
    pixels = (image.astype(jnp.float32) / 255.0 - jnp.array(tower.mean)) / jnp.array(tower.std)
    return patchify(pixels, tower.patch_size)
