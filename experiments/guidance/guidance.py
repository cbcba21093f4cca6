"""Guiding captions towards what is specific of an image (arXiv:2307.16686).

Classifier-free guidance itself is an option of the core's decoding; here is how a captioner learns
what it says of no image, and the guidance by a language model.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num

from big_mm import predictor as predictors
from big_mm.models.captioner import Captioner
from big_mm.predictor import Predictor
from big_mm.types import Outputs


class BlindableCaptioner(Captioner):
    """A captioner that in training sees zeros for a share of the images (section 3.3).

    Attributes:
      blind: that share; 1 makes a language model of it.
    """

    blind: float = 0.5

    def encode_image(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        out = super().encode_image(image, patch_mask, train=train)
        if train and self.blind:
            rng = self.make_rng("dropout")
            seen = jax.random.bernoulli(rng, 1 - self.blind, (len(image), 1, 1))
            out["image_tokens"] = jnp.where(seen, out["image_tokens"], 0)
        return out


class LanguageGuided(nn.Module):
    """Captions by q(x) p(x|y)^alpha / p(x)^beta for caption x and image y (equation 4).

    Attributes:
      captioner: p, with and without the image.
      language: q, a captioner that is shown no image.
    """

    captioner: nn.Module
    language: nn.Module
    alpha: float = 1.0
    beta: float = 1.0

    cache_batch_axis: ClassVar[int] = 1

    def encode_image(
        self, image: Num[Array, "batch height width 3"], *, train: bool = False
    ) -> Outputs:
        return self.captioner.encode_image(image, train=train)

    def init_cache(self, image_tokens: Float[Array, "batch source width"]) -> None:
        self.decode_step(jnp.zeros((image_tokens.shape[0], 0), jnp.int32), image_tokens)

    def decode_step(
        self,
        tokens: Int[Array, "batch length"],
        image_tokens: Float[Array, "batch source width"] | None = None,
    ) -> Outputs:
        """`caption_logits`: the mixed log-probabilities, not normalised."""
        both = nothing = None
        if image_tokens is not None:
            nothing = jnp.zeros_like(image_tokens)
            both = jnp.stack([image_tokens, nothing], axis=1).reshape(-1, *image_tokens.shape[1:])
        # Row 2i sees the image, row 2i + 1 does not.
        p = _log_softmax(self.captioner.decode_step(jnp.repeat(tokens, 2, axis=0), both))
        q = _log_softmax(self.language.decode_step(tokens, nothing))
        return {"caption_logits": q + self.alpha * p[0::2] - self.beta * p[1::2]}


def _log_softmax(outputs: Outputs) -> Float[Array, "batch length vocab"]:
    return jax.nn.log_softmax(outputs["caption_logits"].astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class WithLanguageModel:
    """Alters a predictor of captions to `LanguageGuided`, for `evaluators.Altered`.

    Attributes:
      checkpoint: of the language model, a captioner with the same tokenizer.
      alpha, beta: of `LanguageGuided`.
    """

    checkpoint: str
    alpha: float = 1.0
    beta: float = 1.0

    @functools.cached_property
    def _language(self) -> Predictor:
        return predictors.load(self.checkpoint)

    def __call__(self, predictor: Predictor) -> Predictor:
        predictor.contract.check_same(self._language.contract)
        model = LanguageGuided(predictor.model, self._language.model, self.alpha, self.beta)
        params = {"captioner": predictor.params, "language": self._language.params}
        return dataclasses.replace(predictor, model=model, params=params)

    def protocol(self) -> dict[str, Any]:
        return {"language model": self.checkpoint, "alpha": self.alpha, "beta": self.beta}
