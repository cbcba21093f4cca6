"""A dual encoder whose image side also takes an instruction."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Num, Shaped

from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.heads import unit
from big_mm.models.layers import Transformer
from big_mm.models.pooling import AttentionalPooler
from big_mm.types import Batch, Outputs

Vectors = Float[Array, "_ dim"]
Tokens = Shaped[Array, "_ length"]


class Attention(nn.Module):
    """Self-attention over the two embeddings as tokens, then attentional pooling to one."""

    depth: int = 4
    heads: int = 4

    @nn.compact
    def __call__(self, image: Vectors, text: Vectors) -> Vectors:
        width = image.shape[-1]
        tokens = jnp.stack([image, text], axis=1)
        layers = Transformer(width, self.depth, self.heads, 4 * width, unroll=self.depth)
        return AttentionalPooler(1, width, self.heads)(layers(tokens))[:, 0]


class Sum(nn.Module):
    """The weighted sum of the two unit embeddings: what CLIP offers without new layers."""

    image: float = 1.0
    text: float = 1.0

    def __call__(self, image: Vectors, text: Vectors) -> Vectors:
        return self.image * unit(image) + self.text * unit(text)


class MagicLens(DualEncoder):
    """One tower for queries (image and instruction) and targets (image and no instruction), by
    `fusion` of the embeddings of shared towers (arXiv:2403.19651, section 4.1).

    Attributes:
      fusion: (image, text) -> one vector, all [B,D], before they are unit.
      empty: the first tokens of the empty instruction: bos, eos.
      pad_id: the others.
    """

    fusion: nn.Module = Attention()
    empty: tuple[int, ...] = (1, 2)
    pad_id: int = 0

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """`image_embedding`, with instructions also `query_embedding`, with `target_image` also
        `target_embedding`.
        """
        image = self._image(batch["image"], train)
        out = {"logit_scale": self.temperature(), "image_embedding": self._alone(image, train)}
        if "tokens" in batch:
            text = self._text(batch["tokens"], batch["token_mask"], train)
            out["query_embedding"] = unit(self.fusion(image, text))
        if "target_image" in batch:
            target = self._image(batch["target_image"], train)
            out["target_embedding"] = self._alone(target, train)
        return out

    def encode_image(
        self, image: Num[Array, "batch height width 3"], *, train: bool = False
    ) -> Outputs:
        """`image_embedding`, as a target."""
        return {"image_embedding": self._alone(self._image(image, train), train)}

    def _alone(self, image: Vectors, train: bool) -> Vectors:
        places = jnp.arange(self.text.max_len)
        tokens = jnp.full(len(places), self.pad_id).at[: len(self.empty)].set(jnp.array(self.empty))
        text = self._text(tokens[None], (places < len(self.empty))[None], train)
        return unit(self.fusion(image, jnp.broadcast_to(text, image.shape)))

    def _image(self, image: Num[Array, "batch height width 3"], train: bool) -> Vectors:
        return self.image_head(self.image(image, train=train)["pooled"])

    def _text(self, tokens: Tokens, token_mask: Tokens, train: bool) -> Vectors:
        return self.text_head(self.text(tokens, token_mask, train=train)["pooled"])
