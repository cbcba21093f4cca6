"""How well each of several texts fits an image: by the embeddings, or by the caption decoder."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import numpy as np
from jaxtyping import Float, UInt8

from big_mm.predictor import Predictor
from big_mm.spec import UserError, choose

Per = Literal["text", "token"]
Images = UInt8[np.ndarray, "n size size 3"]
Texts = Sequence[Sequence[str]]
Scores = Float[np.ndarray, "n texts"]


class TextScorer(Protocol):
    """Scores of texts for images; the larger, the better."""

    def __call__(
        self, predictor: Predictor, images: Images, texts: Texts, prefix: Sequence[str]
    ) -> Scores:
        """The score of each of an image's texts behind its prefix; -inf where it has fewer."""

    def protocol(self) -> str:
        """What the scores are, for tables."""


@dataclasses.dataclass(frozen=True)
class Similarity:
    """The cosine of image and text embedding, as CLIP chooses (arXiv:2103.00020)."""

    def __call__(
        self, predictor: Predictor, images: Images, texts: Texts, prefix: Sequence[str]
    ) -> Scores:
        whole = [[first + text for text in row] for first, row in zip(prefix, texts, strict=True)]
        distinct = dict.fromkeys(text for row in whole for text in row)
        position = {text: i for i, text in enumerate(distinct)}
        image = predictor.encode_image(images).astype(np.float64)
        text = predictor.encode_text(list(distinct)).astype(np.float64)
        scores = np.full((len(whole), max(map(len, whole))), -np.inf)
        for i, row in enumerate(whole):
            # As float32, so that equal vectors tie however their products were summed.
            found = text[[position[t] for t in row]] @ image[i]
            scores[i, : len(row)] = found.astype(np.float32)
        return checked(scores)

    def protocol(self) -> str:
        return "cosine of image and text"


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """log p(text | image, prefix) by the caption decoder (arXiv:2107.07651 ranks answers so).

    Attributes:
      per: "text": the sum over its tokens, which prefers short texts; "token": their mean.
    """

    per: Per = "text"

    def __post_init__(self) -> None:
        choose("per", self.per, get_args(Per))

    def __call__(
        self, predictor: Predictor, images: Images, texts: Texts, prefix: Sequence[str]
    ) -> Scores:
        totals, counts = predictor.texts_log_likelihood(images, texts, prefix)
        totals = totals.astype(np.float64)
        return checked(totals / np.maximum(counts, 1) if self.per == "token" else totals)

    def protocol(self) -> str:
        return f"log-likelihood of the {self.per}, given image and prefix"


def checked(scores: Scores) -> Scores:
    """The scores, if none is NaN.

    Raises:
      UserError: one is.
    """
    if np.isnan(scores).any():
        raise UserError("the scores are not finite: the model has diverged")
    return scores
