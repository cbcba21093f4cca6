"""CoCa that reads documents of several images and texts (COSMO, arXiv:2401.00849)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num, Shaped

from big_mm.models.coca import CoCa
from big_mm.models.text import cache_mask, causal_mask
from big_mm.spec import UserError
from big_mm.types import Batch, Outputs


def seen(
    media: Int[Array, "batch length"], media_of: Int[Array, " source"]
) -> Bool[Array, "batch 1 length source"]:
    """True where a token may see a source: those of the image that precedes it last, no others.

    Args:
      media: how many images stand before each token.
      media_of: which image each source is of, from 1 on.
    """
    return (media[:, :, None] == media_of)[:, None]


class Cosmo(CoCa):
    """A CoCa whose decoder sees, from each token, only the image that precedes it last.

    The unimodal half reads text alone, the multimodal half cross-attends through gates
    (decoder.cross_gate=True). A caption of one image is a document of one image.

    Attributes:
      image_id: the token that stands where an image does; by default bos, with which a text begins.
    """

    image_id: int = 1

    def setup(self) -> None:
        super().setup()
        if self.pooling == "shared" or self.legacy:
            raise UserError("Cosmo takes pooling='parallel' or 'cascade', and legacy=False")

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """CoCa's outputs. With `images` [batch, media, height, width, 3] in place of `image`, the
        image embeddings are [batch, media, dim], and so are the text embeddings of `pair_tokens`
        and `pair_token_mask` [batch, media, length]: the caption of each image alone.
        """
        out: Outputs = {"logit_scale": self.temperature()}
        images = batch.get("images", batch.get("image"))
        if images is not None:
            out |= self.encode_image(images, train=train)
        if "tokens" in batch:
            tokens = batch["tokens"]
            text = self._text(tokens, batch["token_mask"], train)
            out |= self._text_outputs(text)
            if images is not None:
                x = self.decoder(
                    text["residual"],
                    causal_mask(tokens.shape[1]),
                    out["image_tokens"],
                    context_mask=seen(
                        (tokens == self.image_id).cumsum(axis=1),
                        self._media_of(out["image_tokens"]),
                    ),
                    train=train,
                )
                out |= self._caption_outputs(x, train)
        if "pair_tokens" in batch:
            shape = batch["pair_tokens"].shape
            rows = (batch[key].reshape(-1, shape[2]) for key in ("pair_tokens", "pair_token_mask"))
            texts = self.encode_text(*rows, train=train)["text_embedding"]
            out["text_embedding"] = texts.reshape(*shape[:2], -1)
        return out

    def encode_image(
        self,
        image: Num[Array, "batch *media height width 3"],
        patch_mask: Shaped[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        """As of `CoCa`; of several images each, `image_tokens` are those of all, one after the
        other.
        """
        if image.ndim == 4:
            return super().encode_image(image, patch_mask, train=train)
        batch, media = image.shape[:2]
        out = super().encode_image(image.reshape(-1, *image.shape[2:]), train=train)
        out = {key: value.reshape(batch, media, *value.shape[1:]) for key, value in out.items()}
        out["image_tokens"] = out["image_tokens"].reshape(batch, -1, self.decoder.width)
        return out

    def decode_step(
        self,
        tokens: Int[Array, "batch length"],
        image_tokens: Num[Array, "batch source width"] | None = None,
    ) -> Outputs:
        """As of `CoCa`; the cache also counts the images before the next token."""
        index = self.get_variable("cache", "index", jnp.zeros((), jnp.int32))
        before = self.get_variable("cache", "media", jnp.zeros((1, len(tokens)), jnp.int32))
        if image_tokens is not None:
            self.put_variable("cache", "media_of", self._media_of(image_tokens))
        media = before[0][:, None] + (tokens == self.image_id).cumsum(axis=1)
        self.put_variable("cache", "media", before + (tokens == self.image_id).sum(axis=1))
        self.put_variable("cache", "index", index + tokens.shape[1])
        mask = cache_mask(index, tokens.shape[1], self.text.max_len)
        x = self.decoder(
            self.text.decode(tokens, index, mask=mask)["residual"],
            mask,
            image_tokens,
            context_mask=seen(media, self.get_variable("cache", "media_of")),
            index=index,
            max_len=self.text.max_len,
        )
        return self._caption_outputs(x, train=False)

    def _media_of(self, image_tokens: Array) -> Int[Array, " source"]:
        return 1 + jnp.arange(image_tokens.shape[1]) // self.queries
