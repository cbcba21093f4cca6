"""How well each of several texts fits an image: by the embeddings, by the caption decoder, or by a
matching head.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float

from big_mm.data.contract import Contract
from big_mm.data.pictures import Pictures
from big_mm.predictor import Predictor
from big_mm.spec import UserError, choose

Per = Literal["text", "token"]
Texts = Sequence[Sequence[str]]
Scores = Float[np.ndarray, "n texts"]


@runtime_checkable
class TextScorer(Protocol):
    """Scores of texts for images; the larger, the better."""

    def __call__(
        self, predictor: Predictor, images: Pictures, texts: Texts, prefix: Sequence[str]
    ) -> Scores:
        """The score of each of an image's texts behind its prefix; -inf where it has fewer.

        Raises:
          UserError: the model cannot score so, or it has diverged.
        """

    def protocol(self) -> str:
        """What the scores are, for tables."""


@dataclasses.dataclass(frozen=True)
class Similarity:
    """The cosine of image and text embedding, as CLIP chooses (arXiv:2103.00020)."""

    def __call__(
        self, predictor: Predictor, images: Pictures, texts: Texts, prefix: Sequence[str]
    ) -> Scores:
        whole = joined(prefix, texts)
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
        self, predictor: Predictor, images: Pictures, texts: Texts, prefix: Sequence[str]
    ) -> Scores:
        totals, counts = predictor.texts_log_likelihood(images, texts, prefix)
        totals = totals.astype(np.float64)
        return checked(totals / np.maximum(counts, 1) if self.per == "token" else totals)

    def protocol(self) -> str:
        return f"log-likelihood of the {self.per}, given image and prefix"


@dataclasses.dataclass(frozen=True)
class Matching:
    """The log odds that image and text belong together, by a model's matching head
    (arXiv:2107.07651, section 3.2).
    """

    def __call__(
        self, predictor: Predictor, images: Pictures, texts: Texts, prefix: Sequence[str]
    ) -> Scores:
        scores = predictor.texts_match(images, joined(prefix, texts))
        return checked(scores.astype(np.float64))

    def protocol(self) -> str:
        return "log odds of matching"


def checked(scores: Scores) -> Scores:
    """The scores, if none is NaN.

    Raises:
      UserError: one is.
    """
    if np.isnan(scores).any():
        raise UserError("the scores are not finite: the model has diverged")
    return scores


def joined(prefix: Sequence[str], texts: Texts) -> list[list[str]]:
    """Each image's prefix before each of its texts."""
    return [[first + text for text in row] for first, row in zip(prefix, texts, strict=True)]


def refuse_equal(contract: Contract, texts: Texts) -> None:
    """Raises UserError if two texts of an image are one to the model, which cuts long ones: between
    them it cannot choose.
    """
    cut = _too_long(contract, (text for row in texts for text in row))
    for row in texts:
        if cut.isdisjoint(row):
            continue
        distinct, seen = list(dict.fromkeys(row)), {}
        for text, ids in zip(distinct, contract.text(distinct)[0].tolist(), strict=True):
            other = seen.setdefault(tuple(ids), text)
            if other != text and not cut.isdisjoint((text, other)):
                raise UserError(
                    f"{other!r} and {text!r} are the same text to the model, which cuts them after "
                    f"{contract.max_len} tokens: shorten them, or take a model of a larger max_len"
                )


def cut_texts(contract: Contract, texts: Iterable[str]) -> dict[str, str]:
    """For the protocol: how many of the different texts the model sees only in part; nothing if it
    sees all. Warns of the first.
    """
    distinct = list(dict.fromkeys(texts))
    cut = _too_long(contract, distinct)
    if not cut:
        return {}
    said = f"{len(cut)} of {len(distinct)} after {contract.max_len} tokens"
    first = next(text for text in distinct if text in cut)
    logging.warning("texts longer than the model reads are cut: %s, the first is %r", said, first)
    return {"texts cut": said}


def _too_long(contract: Contract, texts: Iterable[str]) -> set[str]:
    distinct = list(dict.fromkeys(texts))
    return {distinct[i] for i in contract.too_long(distinct)}
