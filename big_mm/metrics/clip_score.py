"""How well a caption fits its image by a dual encoder: CLIPScore (arXiv:2104.08718).

The published numbers are CLIP ViT-B/32's, computed in float16 on a GPU; another encoder's do not
compare with them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from big_mm.metrics.statistics import Values

PREFIX = "A photo depicts "
WEIGHT = 2.5


def clip_score(
    image: Float[np.ndarray, "n width"], caption: Float[np.ndarray, "n width"]
) -> Values:
    """2.5 max(cos, 0) of the unit embeddings of each image and its caption (with `PREFIX`)."""
    cosine = (image.astype(np.float64) * caption).sum(axis=-1)
    return WEIGHT * np.maximum(cosine, 0)


def ref_clip_score(
    image: Float[np.ndarray, "n width"],
    caption: Float[np.ndarray, "n width"],
    references: Sequence[Float[np.ndarray, "_ width"]],
) -> Values:
    """The harmonic mean of `clip_score` and the largest cosine with a reference caption, at least 0
    (the official program lets that one be negative, where the paper does not).
    """
    first = clip_score(image, caption)
    pairs = zip(caption.astype(np.float64), references, strict=True)
    second = np.array([max(0.0, (truths @ own).max()) for own, truths in pairs])
    total = first + second
    return np.divide(2 * first * second, total, out=np.zeros_like(total), where=total > 0)
