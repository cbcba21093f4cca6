"""Learnable prompts in the towers of a dual encoder: CoOp (arXiv:2109.01134) and MaPLe
(arXiv:2210.03117) are configs of it.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from big_mm.models.dual_encoder import DualEncoder
from big_mm.spec import UserError
from big_mm.types import Outputs


class Prompts(nn.Module):
    """The learned part: text prompts of the first layers, and what couples the image's to them.

    Attributes:
      depth, length: layers with prompts, and prompts a layer.
      text_width: of the text prompts.
      image_width: of the image prompts, each layer's a linear function of its text prompts; 0 for
        none.
      offset: the first layer's are an offset to given embeddings, and begin as zeros.
    """

    depth: int
    length: int
    text_width: int
    image_width: int
    offset: bool

    def setup(self) -> None:
        shape, normal = (self.length, self.text_width), nn.initializers.normal(0.02)
        init = nn.initializers.zeros if self.offset else normal
        self.first = self.param("first", init, shape)
        if self.depth > 1:
            self.deep = self.param("deep", normal, (self.depth - 1, *shape))
        if self.image_width:
            coupling = (self.depth, self.text_width, self.image_width)
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,))
            self.kernel = self.param("kernel", init, coupling)
            self.bias = self.param("bias", nn.initializers.zeros, (self.depth, self.image_width))

    def text(
        self, words: Float[Array, "length width"] | None
    ) -> Float[Array, "depth length width"]:
        """Of the text tower; the first layer's begin as `words`, if these are given."""
        first = self.first if words is None else words + self.first
        return jnp.concatenate([first[None], self.deep]) if self.depth > 1 else first[None]

    def image(
        self, text: Float[Array, "depth length text_width"]
    ) -> Float[Array, "depth length width"]:
        """Of the image tower, from those of the text tower."""
        return jnp.einsum("jpt,jti->jpi", text, self.kernel) + self.bias[:, None]


class PromptedDualEncoder(DualEncoder):
    """A dual encoder with learned prompts between bos and the words of every text.

    The towers are meant to be loaded (`init_from`) and frozen: all but "prompts/.*". A text is
    encoded as ever, without any prompt of its own: "a dog". The context is shared by all classes.

    Attributes:
      length: prompts in a layer; they take up positions of the text tower.
      depth: layers with prompts of their own: those behind the first replace what the layer before
        has made of its prompts.
      words: ids of the words that the first layer's prompts begin as ("a photo of a"); () for
        random ones.
      image_prompts: the image tower has as many, coupled to the text's.
    """

    length: int = 4
    depth: int = 1
    words: tuple[int, ...] = ()
    image_prompts: bool = False

    def setup(self) -> None:
        super().setup()
        if self.length < 1 or self.depth < 1:
            raise UserError(f"length={self.length} and depth={self.depth} must be at least 1")
        if self.words and len(self.words) != self.length:
            raise UserError(f"{len(self.words)} words for prompts of length={self.length}")
        self.prompts = Prompts(
            self.depth,
            self.length,
            self.text.blocks.width,
            self.image.blocks.width if self.image_prompts else 0,
            offset=bool(self.words),
        )

    def encode_image(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        """As of `DualEncoder`."""
        prompts = self.prompts.image(self._text_prompts()) if self.image_prompts else None
        return self._image_outputs(self.image(image, patch_mask, prompts=prompts, train=train))

    def encode_text(
        self,
        tokens: Int[Array, "batch length"],
        token_mask: Shaped[Array, "batch length"],
        *,
        train: bool = False,
    ) -> Outputs:
        """As of `DualEncoder`."""
        prompts = self._text_prompts()
        return self._text_outputs(self.text(tokens, token_mask, prompts=prompts, train=train))

    def _text_prompts(self) -> Float[Array, "depth length width"]:
        words = jnp.take(self.text.embedding, jnp.array(self.words), axis=0) if self.words else None
        return self.prompts.text(words)
