"""Token-wise similarity, and the dual encoder that has tokens to compare."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.heads import unit
from big_mm.types import Outputs


class TokenDualEncoder(DualEncoder):
    """A dual encoder whose projections are applied to every token too.

    Further outputs: `image_token_embeddings` [B,P,D] of the patches and `text_token_embeddings`
    [B,L,D], of unit length, and `text_token_mask` [B,L] float32, 0 for padding.
    """

    def encode_image(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        out = super().encode_image(image, patch_mask, train=train)
        return out | {"image_token_embeddings": unit(self.image_head(out["patch_tokens"]))}

    def encode_text(
        self,
        tokens: Int[Array, "batch length"],
        token_mask: Shaped[Array, "batch length"],
        *,
        train: bool = False,
    ) -> Outputs:
        out = super().encode_text(tokens, token_mask, train=train)
        return out | {
            "text_token_embeddings": unit(self.text_head(out["text_tokens"])),
            "text_token_mask": (token_mask != 0).astype(jnp.float32),
        }


@dataclasses.dataclass(frozen=True)
class LateInteraction:
    """FILIP's similarity (arXiv:2111.07783, equations 4 and 5).

    Of an image to a text: the mean over patches of the cosine with the best word. Of a text to an
    image: the mean over words of the cosine with the best patch. Padding is no word.
    """

    image: tuple[str, ...] = ("image_token_embeddings",)
    text: tuple[str, ...] = ("text_token_embeddings", "text_token_mask")

    def __call__(
        self, images: Outputs, texts: Outputs
    ) -> tuple[Float[Array, "images texts"], Float[Array, "images texts"]]:
        image, (text, mask) = images[self.image[0]], (texts[name] for name in self.text)
        cosine_ITPL = jnp.einsum("ipd,tld->itpl", image, text, precision=jax.lax.Precision.HIGHEST)
        word_TxL = mask != 0
        to_text = jnp.where(word_TxL[:, None], cosine_ITPL, -1.0).max(axis=3).mean(axis=2)
        best_ITL = jnp.where(word_TxL, cosine_ITPL.max(axis=2), 0.0)
        return to_text, best_ITL.sum(axis=2) / jnp.maximum(word_TxL.sum(axis=1), 1)
