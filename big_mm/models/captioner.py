"""A plain captioner: image encoder, text decoder with cross-attention in every layer."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num

from big_mm.models.heads import CaptionHead, caption_outputs
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError
from big_mm.types import Batch, Outputs


class Captioner(nn.Module):
    """The encoder-decoder that CoCa compares itself with (Cap in arXiv:2306.07915).

    Attributes:
      image: the encoder; the decoder attends to its tokens.
      text: the decoder: causal, pool="none", its blocks with cross_attention.
      tie_embeddings: the output softmax uses the token embedding.
      head_bias: the output softmax has a bias.
      mask_token: the last of the text's ids is only read, never written: [MASK], with which CapPa's
        parallel prediction was trained.
    """

    image: VisionTransformer
    text: TextTransformer
    tie_embeddings: bool = False
    head_bias: bool = False
    mask_token: bool = False

    # Cache leaves are [layers, batch, ...]; a scalar is shared by all rows.
    cache_batch_axis = 1

    def setup(self) -> None:
        text = self.text
        if text.pool != "none" or not text.causal or not text.blocks.cross_attention:
            raise UserError(
                "a captioner's text takes pool='none', causal=True and blocks.cross_attention=True"
            )
        self.written = text.vocab_size - self.mask_token
        if self.tie_embeddings and self.head_bias:
            raise UserError("a captioner with tie_embeddings=True takes head_bias=False")
        if not self.tie_embeddings:
            self.caption_head = CaptionHead(text.blocks.width, self.written, self.head_bias)

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """`image_tokens`, and with `tokens` and `token_mask` in the batch `caption_logits`."""
        out = self.encode_image(batch["image"], batch.get("patch_mask"), train=train)
        return out | self._captions(out["image_tokens"], batch, train)

    def encode_image(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        """`image_tokens` and `patch_tokens`."""
        out = self.image(image, patch_mask, train=train)
        return {"image_tokens": out["tokens"], "patch_tokens": out["patches"]}

    def init_cache(self, image_tokens: Float[Array, "batch source width"]) -> None:
        """As of `CoCa`."""
        self.decode_step(jnp.zeros((image_tokens.shape[0], 0), jnp.int32), image_tokens)

    def decode_step(
        self,
        tokens: Int[Array, "batch length"],
        image_tokens: Float[Array, "batch source width"] | None = None,
    ) -> Outputs:
        """As of `CoCa`."""
        index = self.get_variable("cache", "index", jnp.zeros((), jnp.int32))
        out = self.text.decode(tokens, index, image_tokens)
        self.put_variable("cache", "index", index + tokens.shape[1])
        return self._caption_outputs(out["tokens"], train=False)

    def _captions(self, image_tokens: Array, batch: Batch, train: bool) -> Outputs:
        """Caption outputs of the batch's texts, if it has any."""
        if "tokens" not in batch:
            return {}
        text = self.text(batch["tokens"], batch["token_mask"], image_tokens, train=train)
        return self._caption_outputs(text["tokens"], train)

    def _caption_outputs(self, x: Float[Array, "batch length width"], train: bool) -> Outputs:
        tied = self.tie_embeddings
        kernel = self.text.embedding[: self.written].T if tied else self.caption_head()
        return caption_outputs(x, kernel, train)
