"""CoCa: contrastive captioners (arXiv:2205.01917).

An image encoder; a text decoder whose lower half is unimodal (causal, with a CLS token appended
that gives the text embedding) and whose upper half cross-attends to the image; attentional poolers
between encoder and decoder: 256 queries for captioning, one for the contrastive embedding.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from big_mm.models.attention import Mask
from big_mm.models.heads import CaptionHead, Temperature, caption_outputs, unit
from big_mm.models.layers import Transformer, rematerialised
from big_mm.models.pooling import AttentionalPooler
from big_mm.models.text import TextTransformer, cache_mask, causal_mask, legacy_cls_mask
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError, choose
from big_mm.types import Batch, Outputs

POOLING = ("cascade", "parallel", "shared")


class CoCa(nn.Module):
    """The two objectives' model; sizes in `variants.py`.

    The paper's parameter counts are 383 M, 787 M and 2.1 B; ours are 387 M, 795 M and 2.21 B. The
    difference is the poolers, which the paper's towers (86 + 297, 303 + 484, 1,000 + 1,100) leave
    out, and rounding: the giant's text side, from its own sizes, is 1.18 B.

    Attributes:
      image: the encoder, with pool="none".
      text: the unimodal decoder, with pool="cls" and causal.
      decoder: the multimodal decoder, with cross_attention.
      queries: image tokens for the decoder.
      pooling: the contrastive query reads the image tokens ("cascade", the paper's default) or the
        encoder's output ("parallel"), or is the first of `queries` ("shared", open_clip's), which
        leaves the decoder one image token fewer.
      pooler_heads: of the poolers; 0 for the decoder's number.
      pooler_norms: what the poolers normalise, see `AttentionalPooler`.
      embed_dim: of a linear projection to the shared space; 0 for none, as the paper has it, when
        both towers have the same width.
      tie_embeddings: the output softmax uses the token embedding.
      log_scale, max_scale: the logarithm of the inverse temperature at initialisation and the bound
        of the inverse temperature.
      legacy: mask texts as open_clip's CoCa does, for weights trained with it: `legacy_cls_mask`,
        to which `pad_id` is padding.
    """

    image: VisionTransformer
    text: TextTransformer
    decoder: Transformer
    queries: int = 256
    pooling: str = "cascade"
    pooler_heads: int = 0
    pooler_norms: tuple[str, ...] = ("output",)
    embed_dim: int = 0
    tie_embeddings: bool = False
    log_scale: float = math.log(1 / 0.07)
    max_scale: float = 100.0
    legacy: bool = False
    pad_id: int = 0

    # Cache leaves are [layers, batch, ...]; a scalar is shared by all rows.
    cache_batch_axis = 1

    def __post_init__(self) -> None:
        choose("pooling", self.pooling, POOLING)
        super().__post_init__()

    def setup(self) -> None:
        decoder = self.decoder
        if self.image.pool != "none" or self.text.pool != "cls" or not self.text.causal:
            raise UserError("CoCa takes image.pool='none', text.pool='cls' and text.causal=True")
        if not decoder.cross_attention:
            raise UserError("CoCa's decoder needs cross_attention=True")
        if self.text.blocks.width != decoder.width:
            raise UserError(
                f"the decoder of width {decoder.width} continues the text tower of width "
                f"{self.text.blocks.width}: they must be the same"
            )
        self.pooler = self._pooler(self.queries)
        if self.pooling != "shared":
            self.contrastive_pooler = self._pooler(1)
        self.norm = nn.LayerNorm(epsilon=decoder.norm_eps, dtype=decoder.dtype)
        if self.embed_dim:
            project = {"use_bias": False, "dtype": decoder.dtype}
            self.image_projection = nn.Dense(self.embed_dim, **project)
            self.text_projection = nn.Dense(self.embed_dim, **project)
        if not self.tie_embeddings:
            self.caption_head = CaptionHead(decoder.width, self.text.vocab_size)
        self.temperature = Temperature(self.log_scale, self.max_scale)

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """All outputs that the batch's keys (`image`; `tokens` and `token_mask`) allow."""
        out: Outputs = {"logit_scale": self.temperature()}
        if "image" in batch:
            out |= self.encode_image(batch["image"], batch.get("patch_mask"), train=train)
        if "tokens" in batch:
            text = self._text(batch["tokens"], batch["token_mask"], train)
            out |= self._text_outputs(text)
            if "image" in batch:
                mask = causal_mask(batch["tokens"].shape[1])
                x = self.decoder(text["residual"], mask, out["image_tokens"], train=train)
                out |= self._caption_outputs(x, train)
        return out

    def encode_image(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        """`image_embedding`, `image_features`, `image_tokens` and `patch_tokens`."""
        tower = self.image(image, patch_mask, train=train)
        return self.pool(tower["tokens"]) | {"patch_tokens": tower["patches"]}

    def pool(self, x: Float[Array, "batch tokens width"]) -> Outputs:
        """`image_embedding`, `image_features` and `image_tokens` of the image tower's tokens, or of
        some of them: of an image that shows no more.
        """
        tokens = self.pooler(x)
        if self.pooling == "shared":
            pooled, tokens = tokens[:, 0], tokens[:, 1:]
        else:
            pooled = self.contrastive_pooler(tokens if self.pooling == "cascade" else x)[:, 0]
        embedding = self.image_projection(pooled) if self.embed_dim else pooled
        return {
            "image_embedding": unit(embedding),
            "image_features": pooled.astype(jnp.float32),
            "image_tokens": tokens,
        }

    def encode_text(
        self,
        tokens: Int[Array, "batch length"],
        token_mask: Shaped[Array, "batch length"],
        *,
        train: bool = False,
    ) -> Outputs:
        """`text_embedding` and `text_tokens`."""
        return self._text_outputs(self._text(tokens, token_mask, train))

    def init_cache(self, image_tokens: Float[Array, "batch source width"]) -> None:
        """Creates the "cache" collection of `decode_step`, empty but for the image's keys and
        values: `_, state = apply(variables, image_tokens, method="init_cache", mutable="cache")`.
        """
        self.decode_step(jnp.zeros((image_tokens.shape[0], 0), jnp.int32), image_tokens)

    def decode_step(
        self,
        tokens: Int[Array, "batch length"],
        image_tokens: Float[Array, "batch source width"] | None = None,
    ) -> Outputs:
        """`caption_logits` [batch, length, vocab] of `tokens`, appended to what the "cache"
        collection holds; equal to those of the whole caption at once.

        Without `image_tokens` the decoder attends to the image's keys and values in the cache; with
        them it computes and caches these (so the first call, on no cache, is `init_cache` too). No
        more than `text.max_len` tokens in all: the caller counts.
        """
        index = self.get_variable("cache", "index", jnp.zeros((), jnp.int32))
        length, max_len = tokens.shape[1], self.text.max_len
        mask = cache_mask(index, length, max_len)
        text_mask = self._legacy_cache_mask(tokens, index, mask) if self.legacy else mask
        x = self.text.decode(tokens, index, mask=text_mask)["residual"]
        x = self.decoder(x, mask, image_tokens, index=index, max_len=max_len)
        self.put_variable("cache", "index", index + length)
        return self._caption_outputs(x, train=False)

    def _text(self, tokens: Array, token_mask: Array, train: bool) -> dict[str, Array]:
        mask = legacy_cls_mask(tokens, self.pad_id) if self.legacy else None
        return self.text(tokens, token_mask, mask=mask, train=train)

    def _legacy_cache_mask(self, tokens: Array, index: Array, mask: Mask) -> Mask:
        """`legacy_cls_mask` for the cache: it remembers after which slots padding stood."""
        ones = jnp.ones((1, len(tokens), self.text.max_len + 1), bool)
        visible = self.get_variable("cache", "visible", ones)
        visible = jax.lax.dynamic_update_slice(
            visible, (tokens != self.pad_id)[None], (0, 0, index + 1)
        )
        self.put_variable("cache", "visible", visible)
        return mask & visible[0, :, None, None, :-1]

    def _text_outputs(self, text: dict[str, Array]) -> Outputs:
        pooled = text["pooled"]
        if self.embed_dim:
            pooled = self.text_projection(pooled)
        return {"text_embedding": unit(pooled), "text_tokens": text["tokens"]}

    def _caption_outputs(self, x: Float[Array, "batch length width"], train: bool) -> Outputs:
        kernel = self.text.embedding.T if self.tie_embeddings else self.caption_head()
        return caption_outputs(self.norm(x), kernel, train)

    def _pooler(self, queries: int) -> AttentionalPooler:
        decoder = self.decoder
        return rematerialised(AttentionalPooler, decoder.remat)(
            queries,
            decoder.width,
            self.pooler_heads or decoder.heads,
            use_bias=decoder.use_bias,
            norm_eps=decoder.norm_eps,
            norms=self.pooler_norms,
            dtype=decoder.dtype,
            implementation=decoder.implementation,
        )
