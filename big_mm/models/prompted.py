"""Learnable prompts in the towers of a dual encoder: CoOp (arXiv:2109.01134) and MaPLe
(arXiv:2210.03117) are configs of it.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Inserted
from big_mm.spec import UserError, choose
from big_mm.types import Outputs

# Where the words of a text stand to the context; the share of the context before them.
CLASS_POSITIONS = {"end": 1.0, "middle": 0.5, "front": 0.0}


class Prompts(nn.Module):
    """The learned part: text prompts of the first layers, and what couples the image's to them.

    Attributes:
      depth, length: layers with prompts, and prompts a layer.
      text_width: of the text prompts.
      image_width: of the image prompts, each layer's a linear function of its text prompts; 0 for
        none.
      offset: the first layer's are an offset to given embeddings, and begin as zeros.
      classes: how many sets of text prompts there are, one for each class; 0 for one without.
    """

    depth: int
    length: int
    text_width: int
    image_width: int
    offset: bool
    classes: int = 0

    def setup(self) -> None:
        shape, normal = (self.length, self.text_width), nn.initializers.normal(0.02)
        each = (self.classes,) if self.classes else ()
        init = nn.initializers.zeros if self.offset else normal
        self.first = self.param("first", init, (*each, *shape))
        if self.depth > 1:
            self.deep = self.param("deep", normal, (*each, self.depth - 1, *shape))
        if self.image_width:
            coupling = (self.depth, self.text_width, self.image_width)
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,))
            self.kernel = self.param("kernel", init, coupling)
            self.bias = self.param("bias", nn.initializers.zeros, (self.depth, self.image_width))

    def text(self, words: Float[Array, "length width"] | None) -> Inserted:
        """Of the text tower, [depth, length, width], of each class if there are `classes`; the
        first layer's begin as `words`, if these are given.
        """
        first = self.first if words is None else words + self.first
        first = first[..., None, :, :]
        return jnp.concatenate([first, self.deep], axis=-3) if self.depth > 1 else first

    def image(
        self, text: Float[Array, "depth length text_width"]
    ) -> Float[Array, "depth length width"]:
        """Of the image tower, from those of the text tower."""
        return jnp.einsum("jpt,jti->jpi", text, self.kernel) + self.bias[:, None]


class PromptedDualEncoder(DualEncoder):
    """A dual encoder with learned prompts among the tokens of every text, its context.

    The towers are meant to be loaded (`init_from`) and frozen: all but "prompts/.*". A text is
    encoded as ever, without any prompt of its own: "a dog". With `classes`, a text that is of none
    of them has no context, and its embedding is not a number: training refuses the step, and
    evaluators the embedding.

    Attributes:
      length: prompts in a layer; they take up positions of the text tower.
      depth: layers with prompts of their own: those behind the first replace what the layer before
        has made of its prompts.
      words: ids of the words that the first layer's prompts begin as ("a photo of a"); () for
        random ones.
      image_prompts: the image tower has as many, coupled to the text's.
      class_position: where a text's words stand: at the "end" of the context, in the "middle" (of
        an odd one the larger half is behind them), or in "front" of it. bos stays first; the last
        token of `token_mask`, eos, stays last.
      classes: the tokens of each class's text, from bos to eos, for a context of its own each; ()
        for one that all texts share.
    """

    length: int = 4
    depth: int = 1
    words: tuple[int, ...] = ()
    image_prompts: bool = False
    class_position: str = "end"
    classes: tuple[tuple[int, ...], ...] = ()

    def setup(self) -> None:
        super().setup()
        if self.length < 1 or self.depth < 1:
            raise UserError(f"length={self.length} and depth={self.depth} must be at least 1")
        if self.words and len(self.words) != self.length:
            raise UserError(f"{len(self.words)} words for prompts of length={self.length}")
        choose("class_position", self.class_position, CLASS_POSITIONS)
        if self.class_position != "end" and self.depth > 1:
            raise UserError(
                f"class_position={self.class_position!r} needs depth=1, not {self.depth}: deeper "
                "prompts stand behind bos"
            )
        if self.classes and self.image_prompts:
            raise UserError("image_prompts=True needs prompts that all classes share: classes=()")
        if len(set(self.classes)) < len(self.classes):
            raise UserError("classes: two of them have the same tokens")
        self.prompts = Prompts(
            self.depth,
            self.length,
            self.text.blocks.width,
            self.image.blocks.width if self.image_prompts else 0,
            offset=bool(self.words),
            classes=len(self.classes),
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
        if self.classes:
            prompts = self._of_texts(prompts, tokens, token_mask)
        out = self.text(
            tokens,
            token_mask,
            prompts=prompts,
            prompts_after=self._after(token_mask),
            train=train,
        )
        return self._text_outputs(out)

    def _text_prompts(self) -> Inserted:
        words = jnp.take(self.text.embedding, jnp.array(self.words), axis=0) if self.words else None
        return self.prompts.text(words)

    def _of_texts(
        self,
        prompts: Float[Array, "classes depth length width"],
        tokens: Int[Array, "batch tokens"],
        token_mask: Shaped[Array, "batch tokens"],
    ) -> Float[Array, "batch depth length width"]:
        """The prompts of the class whose tokens a text has; no number if there is none."""
        room = max(tokens.shape[1], *map(len, self.classes))
        known_CxL = np.array([(*row, *[-1] * (room - len(row))) for row in self.classes])
        own_BxL = jnp.where(token_mask != 0, tokens, -1)
        own_BxL = jnp.pad(own_BxL, [(0, 0), (0, room - tokens.shape[1])], constant_values=-1)
        same_BxC = (own_BxL[:, None] == known_CxL).all(axis=2)
        found = prompts[same_BxC.argmax(axis=1)]
        return jnp.where(same_BxC.any(axis=1)[:, None, None, None], found, jnp.nan)

    def _after(self, token_mask: Shaped[Array, "batch tokens"]) -> Int[Array, "batch count"] | None:
        """Behind how many tokens each prompt stands; None for bos alone."""
        if self.class_position == "end":
            return None
        before = int(CLASS_POSITIONS[self.class_position] * self.length)
        all_but_eos = jnp.maximum((token_mask != 0).sum(axis=1) - 1, 1)
        return jnp.where(jnp.arange(self.length) < before, 1, all_but_eos[:, None])
