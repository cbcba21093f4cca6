"""CoCa with a head that reconstructs masked patches from the caption (SyCoCa, arXiv:2401.02137)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Num, Shaped

from big_mm.models.coca import CoCa
from big_mm.models.layers import Transformer
from big_mm.types import Batch, Outputs


class SyCoCa(CoCa):
    """CoCa with an image decoder over its image tower, which needs mask_token=True.

    Attributes:
      image_decoder: with cross_attention, to the tokens of the caption.
    """

    image_decoder: Transformer | None = None

    def setup(self) -> None:
        super().setup()
        self.to_decoder = nn.Dense(self.image_decoder.width, dtype=self.image_decoder.dtype)
        self.to_pixels = nn.Dense(3 * self.image.patch_size**2)

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """CoCa's outputs. (Initialisation needs the head's parameters too.)"""
        out = super().__call__(batch, train=train)
        if self.is_initializing():
            mask = jnp.zeros(out["patch_tokens"].shape[:2], bool)
            self.reconstruct(batch["image"], mask, out["text_tokens"], batch["token_mask"])
        return out

    def reconstruct(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"],
        text_tokens: Float[Array, "batch length text_width"],
        token_mask: Shaped[Array, "batch length"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch patches pixels"]:
        """Normalised pixels of all patches, from the caption and those that are not masked."""
        x = self.to_decoder(self.image(image, patch_mask, train=train)["patches"])
        said = (token_mask != 0)[:, None, None, :]
        x = self.image_decoder(x, context=text_tokens, context_mask=said, train=train)
        return self.to_pixels(x.astype(jnp.float32))

    def patch_embeddings(
        self, patches: Float[Array, "batch patches width"]
    ) -> Float[Array, "batch patches dim"]:
        """Of each patch the embedding of an image that shows no other."""
        alone = self.pool(patches.reshape(-1, 1, patches.shape[-1]))["image_embedding"]
        return alone.reshape(*patches.shape[:2], -1)
