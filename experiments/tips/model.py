"""A dual encoder with two image embeddings and heads of prototypes (TIPS, arXiv:2410.16512)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Num

from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.heads import Prototypes, unit
from big_mm.spec import UserError
from big_mm.types import Outputs


class TIPS(DualEncoder):
    """Two cls tokens: the first is embedded near the alt-text, the second near the full caption.

    The text tower, and the temperature, serve both; the full caption is the batch's `tokens_full`.
    The first is also compared with prototypes, and so are the patches, by a head of their own.

    Attributes:
      prototypes, hidden, bottleneck: sizes of both heads.
    """

    prototypes: int = 512
    hidden: int = 256
    bottleneck: int = 64

    def setup(self) -> None:
        super().setup()
        if self.image.pool != "cls" or self.image.cls_tokens != 2:
            raise UserError("TIPS takes image.pool='cls' and image.cls_tokens=2")
        image_bias = self.projection_bias
        self.full_head = self._head("image", self.image, self.image_projection, image_bias)
        sizes = self.prototypes, self.hidden, self.bottleneck
        self.image_prototypes, self.patch_prototypes = Prototypes(*sizes), Prototypes(*sizes)

    def encode_image(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        """As of `DualEncoder`, and `image_embedding_full`; `prototypes` [batch, count] and
        `patch_prototypes` [batch, patches, count], cosines.
        """
        out = self.image(image, patch_mask, train=train)
        first, second = out["cls"][:, 0], out["cls"][:, 1]
        return {
            "image_embedding": unit(self.image_head(first)),
            "image_embedding_full": unit(self.full_head(second)),
            "image_features": first.astype(jnp.float32),
            "image_tokens": out["tokens"],
            "patch_tokens": out["patches"],
            "prototypes": self.image_prototypes(first),
            "patch_prototypes": self.patch_prototypes(out["patches"]),
        }
