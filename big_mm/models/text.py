"""Text transformer: causal or bidirectional, pooled or not, with cross-attention or without.

`max_len` is the number of tokens of a caption, bos and eos included; a batch may be shorter. A
learned CLS (pool="cls") is one more position, appended after the caption's last slot.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from big_mm import mesh
from big_mm.models.attention import Mask
from big_mm.models.layers import Inserted, Transformer
from big_mm.spec import UserError, choose

POOLS = ("none", "cls", "first", "last", "eos", "argmax", "mean")


def causal_mask(length: int) -> Bool[Array, "1 1 length length"]:
    """True where target i may see source j: j <= i."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def cls_mask(
    token_mask: Shaped[Array, "batch length"], causal: bool = True
) -> Bool[Array, "batch 1 length_1 length_1"]:
    """The mask of a caption with CLS appended: the CLS row sees the caption (bos to eos) and
    itself and no padding; no token sees CLS (arXiv:2205.01917, section 3.2).

    Tokens see what precedes them, or the whole caption if not `causal`.
    """
    batch, length = token_mask.shape
    valid = jnp.pad(token_mask != 0, ((0, 0), (0, 1)), constant_values=True)[:, None, None, :]
    last = jnp.arange(length + 1) == length
    among_tokens = causal_mask(length + 1) if causal else valid & ~last
    return jnp.where(last[:, None], valid, among_tokens)


def legacy_cls_mask(
    tokens: Int[Array, "batch length"], pad_id: int = 0
) -> Bool[Array, "batch 1 length_1 length_1"]:
    """The mask of open_clip's CoCa (its release 3.3).

    Padding is told by its id, of which 0 is also the byte-pair token "!", and the validity of
    position j stands at j + 1. So CLS sees one padding token and not itself, unless the last slot
    is filled, and what follows a "!" is seen by nothing, itself included. (Before June 2025, when
    the published weights were trained, that last was so for CLS only.)
    """
    valid = jnp.pad(tokens != pad_id, ((0, 0), (1, 0)), constant_values=True)[:, None, None, :]
    return causal_mask(tokens.shape[1] + 1) & valid


class TextTransformer(nn.Module):
    """Embeddings, positions, transformer, final norm, pooling.

    Attributes:
      blocks: the layers; with their `cross_attention` they need a `context`.
      pool: "none"; "cls", a learned token appended after the caption; "first", "last", that slot
        whatever it holds (SigLIP's is the last); "eos", the first `eos_id`, or without one the last
        token of the caption; "argmax", the first token of the highest id, which is CLIP's eos;
        "mean" over the caption.
      mask_padding: only for `causal=False`: tokens do not attend to padding. SigLIP's do.
      token_types: rows of a table whose first is added to every token: BERT's segments, of which a
        caption has one.
      position_offset: positions before that of the first token (RoBERTa has two).
      rep_size: width of a linear layer with tanh behind the pooling, which BERT calls its pooler;
        0 for none.

    The tower's own norm comes after the blocks; where these are norm="post", before them.
    """

    blocks: Transformer
    vocab_size: int
    max_len: int = 64
    causal: bool = True
    pool: str = "cls"
    mask_padding: bool = True
    eos_id: int | None = None
    token_types: int = 0
    position_offset: int = 0
    rep_size: int = 0

    def __post_init__(self) -> None:
        choose("pool", self.pool, POOLS)
        if self.rep_size and self.pool == "none":
            raise UserError(f"text: rep_size={self.rep_size} needs a pool, which is 'none'")
        super().__post_init__()

    def setup(self) -> None:
        init, width = nn.initializers.normal(0.02), self.blocks.width
        self.embedding = self.param("embedding", init, (self.vocab_size, width))
        slots = self.position_offset + self.max_len + (self.pool == "cls")
        self.positions = self.param("position_embedding", init, (slots, width))
        if self.token_types:
            self.types = self.param("type_embedding", init, (self.token_types, width))
        if self.rep_size:
            self.pre_logits = nn.Dense(self.rep_size, dtype=self.blocks.dtype)
        if self.pool == "cls":
            self.cls = self.param("cls", init, (width,))
        self.norm = nn.LayerNorm(epsilon=self.blocks.norm_eps, dtype=self.blocks.dtype)

    @property
    def output_width(self) -> int:
        """Of `pooled`."""
        return self.rep_size or self.blocks.width

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        token_mask: Shaped[Array, "batch length"],
        context: Float[Array, "batch source context_width"] | None = None,
        *,
        mask: Mask | None = None,
        prompts: Inserted | None = None,
        prompts_after: Int[Array, "batch count"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """`tokens` [batch, length, width], normed; `residual`, the same before the norm; `pooled`
        [batch, output_width] unless pool is "none". `mask` is used in place of the tower's own.

        With `prompts`, the first layer's are further embeddings between the first token (bos) and
        the words, or each behind as many of its row's tokens as `prompts_after` says, in ascending
        order; those of layer i stand in their place in its input. They take up positions, and are
        left out of `tokens` and `residual`.

        Raises:
          UserError: the batch, prompts included, is longer than `max_len`; `prompts_after` with
            prompts of several layers.
        """
        x, slots = self._embed(tokens), None
        if prompts is not None:
            count = prompts.shape[-2]
            order, slots = _prompt_order(tokens.shape, prompts.shape[-3:], prompts_after)
            first = jnp.broadcast_to(prompts[..., 0, :, :], (len(x), *prompts.shape[-2:]))
            x = _ordered(x, first.astype(x.dtype), order)
            # A prompt counts as one more bos, which ends no text.
            tokens, token_mask = (
                _ordered(row, jnp.repeat(row[:, :1], count, axis=1), order)
                for row in (tokens, token_mask)
            )
        length = self._length(tokens)
        x = self._placed(x, self.positions[self.position_offset :][:length])
        if self.pool == "cls":
            cls = (self.cls + self.positions[-1]).astype(x.dtype)
            cls = jnp.broadcast_to(cls, (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([x, cls], axis=1)
        mask = self._mask(token_mask) if mask is None else mask
        deep = None if prompts is None else prompts[..., 1:, :, :]
        x = self.blocks(
            self._normed(x, "post"), mask, context, inserted=deep, insert_at=1, train=train
        )
        normed = self._normed(x, "pre")
        out = {"tokens": normed[:, :length], "residual": x[:, :length]}
        if slots is not None:
            out = {k: jnp.take_along_axis(v, slots[..., None], axis=1) for k, v in out.items()}
        if self.pool != "none":
            pooled = self._pooled(normed, tokens, token_mask)
            out["pooled"] = nn.tanh(self.pre_logits(pooled)) if self.rep_size else pooled
        return out

    def decode(
        self,
        tokens: Int[Array, "batch length"],
        index: Int[Array, ""],
        context: Float[Array, "batch source context_width"] | None = None,
        *,
        mask: Mask | None = None,
    ) -> dict[str, Array]:
        """Appends tokens at positions index, index + 1, ... to the "cache" collection; returns
        their `tokens` and `residual`, equal to those of the whole caption.
        """
        length = self._length(tokens)
        start = self.position_offset + index
        positions = jax.lax.dynamic_slice_in_dim(self.positions, start, length)
        mask = cache_mask(index, length, self.max_len) if mask is None else mask
        x = self._normed(self._placed(self._embed(tokens), positions), "post")
        x = self.blocks(x, mask, context, index=index, max_len=self.max_len)
        return {"tokens": self._normed(x, "pre"), "residual": x}

    def _normed(self, x: Array, where: str) -> Array:
        """`x`, normalised if the blocks' own norms are at the other end of their branches."""
        return self.norm(x) if self.blocks.norm == where else x

    def _length(self, tokens: Array) -> int:
        if tokens.shape[1] > self.max_len:
            raise UserError(
                f"{tokens.shape[1]} tokens a caption for a text tower of max_len={self.max_len}"
            )
        return tokens.shape[1]

    def _embed(self, tokens: Array) -> Array:
        return mesh.by_rows(self.embedding[tokens].astype(self.blocks.dtype))

    def _placed(self, x: Array, positions: Array) -> Array:
        if self.token_types:
            positions = positions + self.types[0]
        return x + positions.astype(x.dtype)

    def _mask(self, token_mask: Array) -> Mask | None:
        if self.pool == "cls":
            return cls_mask(token_mask, self.causal)
        if self.causal:
            return causal_mask(token_mask.shape[1])
        return (token_mask != 0)[:, None, None, :] if self.mask_padding else None

    def _pooled(self, x: Array, tokens: Array, token_mask: Array) -> Float[Array, "batch width"]:
        if self.pool == "first":
            return x[:, 0]
        if self.pool in ("cls", "last"):
            return x[:, -1]
        if self.pool == "argmax":
            return _at(x, tokens.argmax(axis=1))
        if self.pool == "eos" and self.eos_id is not None:
            return _at(x, (tokens == self.eos_id).argmax(axis=1))
        valid = token_mask != 0
        if self.pool == "mean":
            weight = valid[..., None].astype(jnp.float32)
            return (x * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)
        return _at(x, jnp.maximum(valid.sum(axis=1) - 1, 0))


def _prompt_order(
    text: tuple[int, int], prompts: tuple[int, int, int], after: Int[Array, "batch count"] | None
) -> tuple[Int[Array, "batch slots"], Int[Array, "batch length"]]:
    """Of each slot, what stands there: a token, or a prompt, counted on behind the tokens; and of
    each token its slot. From the shapes [batch, length] and [layers, count, width].
    """
    (rows, length), (layers, count, _) = text, prompts
    if after is not None and layers > 1:
        raise UserError(
            f"prompts of {layers} layers, of which those behind the first stand behind bos: "
            "prompts_after needs those of one layer"
        )
    after = jnp.ones((rows, count), jnp.int32) if after is None else after
    # Token i at 2 i + 1, so that a prompt behind n tokens is at 2 n.
    tokens = jnp.broadcast_to(2 * jnp.arange(length) + 1, (rows, length))
    order = jnp.argsort(jnp.concatenate([tokens, 2 * after], axis=1), axis=1)
    return order, jnp.argsort(order, axis=1)[:, :length]


def _ordered(x: Array, further: Array, order: Int[Array, "batch slots"]) -> Array:
    joined = jnp.concatenate([x, further], axis=1)
    return jnp.take_along_axis(joined, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)


def _at(x: Float[Array, "batch length width"], index: Int[Array, " batch"]) -> Array:
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def cache_mask(
    index: Int[Array, ""] | int, length: int, max_len: int
) -> Bool[Array, "1 1 length max_len"]:
    """True where the token at index + i may see slot j of the cache: j <= index + i."""
    target = index + jnp.arange(length)[:, None]
    return (jnp.arange(max_len) <= target)[None, None]
