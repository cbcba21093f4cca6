"""A dual encoder with a fusion encoder behind it (ALBEF, arXiv:2107.07651)."""

from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.spec import UserError
from big_mm.types import Batch, Outputs


class ALBEF(DualEncoder):
    """The fusion encoder reads a text's tokens, from the text tower, with attention to the image's.

    Attributes:
      fusion: with cross_attention, of the text tower's width. The text tower sees both ways and is
        pooled at its first token.
    """

    fusion: Transformer | None = None

    def setup(self) -> None:
        super().setup()
        if self.fusion is None or not self.fusion.cross_attention:
            raise UserError("ALBEF's fusion encoder needs cross_attention=True")
        if self.text.causal or self.text.pool != "first":
            raise UserError("ALBEF takes text.causal=False and text.pool='first'")
        self.fusion_norm = nn.LayerNorm(epsilon=self.fusion.norm_eps, dtype=self.fusion.dtype)
        self.match_head = nn.Dense(1, dtype=self.fusion.dtype)
        self.word_head = nn.Dense(self.text.vocab_size, dtype=self.fusion.dtype)

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """A dual encoder's outputs; with both in the batch also those of `match` and `words`."""
        out = super().__call__(batch, train=train)
        if "image" in batch and "tokens" in batch:
            pair = out["image_tokens"], out["text_tokens"], batch["token_mask"]
            out |= self.match(*pair, train=train)
            out |= self.words(out["fused_tokens"])
        return out

    def match(
        self,
        image_tokens: Float[Array, "batch patches image_width"],
        text_tokens: Float[Array, "batch length width"],
        token_mask: Shaped[Array, "batch length"],
        *,
        train: bool = False,
    ) -> Outputs:
        """`match_logit` [batch], the log odds that the two belong together; `fused_tokens`."""
        mask = (token_mask != 0)[:, None, None]
        x = self.fusion_norm(self.fusion(text_tokens, mask, image_tokens, train=train))
        return {"match_logit": self.match_head(x[:, 0])[:, 0], "fused_tokens": x}

    def words(self, fused_tokens: Float[Array, "batch length width"]) -> Outputs:
        """`word_logits` [batch, length, vocab] of what stands at each token."""
        return {"word_logits": self.word_head(fused_tokens)}
