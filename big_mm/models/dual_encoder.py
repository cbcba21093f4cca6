"""Two towers and a temperature: CLIP, ALIGN and SigLIP are configs of it (see `variants.py`)."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Int, Num, Shaped

from big_mm.models.heads import Temperature, unit
from big_mm.models.layers import Mlp
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError
from big_mm.types import Batch, Outputs


class DualEncoder(nn.Module):
    """Image and text embeddings of one space (arXiv:2103.00020, 2102.05918, 2303.15343).

    Attributes:
      image, text: towers that pool (`pool` is not "none").
      embed_dim: of the shared space.
      image_projection, text_projection: whether a linear layer leads from the tower to the space;
        without one the tower's width must be `embed_dim`.
      projection_bias: CLIP's projections have none, SigLIP's one has.
      text_projection_bias: where it differs from the image's.
      text_projection_hidden: width of a hidden layer with the exact GELU in the text's projection;
        0 for a linear one.
      log_scale, max_scale: the logarithm of the inverse temperature at initialisation and the bound
        of the inverse temperature.
      logit_bias: its initial value, for the sigmoid loss; None for none.
    """

    image: VisionTransformer
    text: TextTransformer
    embed_dim: int = 512
    image_projection: bool = True
    text_projection: bool = True
    projection_bias: bool = False
    text_projection_bias: bool | None = None
    text_projection_hidden: int = 0
    log_scale: float = math.log(1 / 0.07)
    max_scale: float = 100.0
    logit_bias: float | None = None

    def setup(self) -> None:
        image_bias, text_bias = self.projection_bias, self.text_projection_bias
        text_bias = image_bias if text_bias is None else text_bias
        self.image_head = self._head("image", self.image, self.image_projection, image_bias)
        self.text_head = self._head(
            "text", self.text, self.text_projection, text_bias, self.text_projection_hidden
        )
        self.temperature = Temperature(self.log_scale, self.max_scale)
        if self.logit_bias is not None:
            self.bias = self.param("logit_bias", nn.initializers.constant(self.logit_bias), ())

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """All outputs that the batch's keys (`image`; `tokens` and `token_mask`; `class_tokens` and
        `class_token_mask`) allow. Of further texts, `tokens_X` and `token_mask_X`, `encode_text`'s
        outputs end in the same `_X`.
        """
        out: Outputs = {"logit_scale": self.temperature()}
        if self.logit_bias is not None:
            out["logit_bias"] = self.bias
        if "image" in batch:
            out |= self.encode_image(batch["image"], batch.get("patch_mask"), train=train)
        if "tokens" in batch:
            out |= self.encode_text(batch["tokens"], batch["token_mask"], train=train)
        for key in [key for key in batch if key.startswith("tokens_")]:
            suffix = key.removeprefix("tokens")
            text = self.encode_text(batch[key], batch[f"token_mask{suffix}"], train=train)
            out |= {f"{name}{suffix}": value for name, value in text.items()}
        if "class_tokens" in batch:
            texts = batch["class_tokens"][0], batch["class_token_mask"][0]
            out["class_embedding"] = self.encode_text(*texts, train=train)["text_embedding"]
        return out

    def encode_image(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        """`image_embedding`, `image_features`, `image_tokens` and `patch_tokens`."""
        return self._image_outputs(self.image(image, patch_mask, train=train))

    def _image_outputs(self, out: dict[str, Array]) -> Outputs:
        return {
            "image_embedding": unit(self.image_head(out["pooled"])),
            "image_features": out["pooled"].astype(jnp.float32),
            "image_tokens": out["tokens"],
            "patch_tokens": out["patches"],
        }

    def encode_text(
        self,
        tokens: Int[Array, "batch length"],
        token_mask: Shaped[Array, "batch length"],
        *,
        train: bool = False,
    ) -> Outputs:
        """`text_embedding` and `text_tokens`."""
        return self._text_outputs(self.text(tokens, token_mask, train=train))

    def _text_outputs(self, out: dict[str, Array]) -> Outputs:
        return {
            "text_embedding": unit(self.text_head(out["pooled"])),
            "text_tokens": out["tokens"],
        }

    def _head(
        self,
        name: str,
        tower: VisionTransformer | TextTransformer,
        project: bool,
        bias: bool,
        hidden: int = 0,
    ):
        if tower.pool == "none":
            raise UserError(f"a dual encoder needs an embedding: {name}.pool is 'none'")
        if project and hidden:
            return Mlp(self.embed_dim, hidden, "gelu_exact", bias, dtype=tower.blocks.dtype)
        if project:
            return nn.Dense(self.embed_dim, use_bias=bias, dtype=tower.blocks.dtype)
        if hidden:
            raise UserError(f"{name}_projection_hidden={hidden} needs {name}_projection=True")
        if tower.output_width != self.embed_dim:
            raise UserError(
                f"{name}_projection=False needs {name}'s width {tower.output_width} to be "
                f"embed_dim={self.embed_dim}"
            )
        return lambda x: x
