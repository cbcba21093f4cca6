"""Figures of a set of captions beyond its agreement with people's: for `Captioning.figures`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float

from big_mm import predictor as predictors
from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.metrics import clip_score, composed, diversity, ptb
from big_mm.metrics.statistics import Mean, Median, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Captions:
    """What was said about which images.

    Attributes:
      index: the records' numbers in the source.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    source: Source
    index: Sequence[int]
    predictor: Predictor
    batch_size: int


class Figure(Protocol):
    """Metrics of all captions at once. `about` (optional) describes them to the report."""

    def __call__(self, said: Captions) -> dict[str, float | Statistic]:
        """The metrics, as numbers or as statistics over the images."""

    def protocol(self) -> dict[str, Any]:
        """What pins them, JSON-able."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """Whether captions fit their images, by a dual encoder: CLIPScore, RefCLIPScore, and whether a
    caption finds its own image (self-retrieval, arXiv:2409.03025).

    Attributes:
      checkpoint: of the dual encoder, as `big_mm.load` takes it; None: the captioner itself, which
        then judges its own work.
      prefix: before each caption and reference for the two CLIPScores, as the paper has it; not for
        retrieval.
      ks: depths of self-retrieval among all images; its size depends on their number.
      bag: also self-retrieval among so many images, the own one and those most like it; 0: not.
    """

    checkpoint: str | None = None
    prefix: str = clip_score.PREFIX
    ks: tuple[int, ...] = (1, 5)
    bag: int = 0

    about: ClassVar[dict[str, About]] = {
        "clip_score": About(
            "CLIPScore", "2.5 times the cosine of image and caption", "score", headline=True
        ),
        "ref_clip_score": About(
            "RefCLIPScore", "harmonic mean with the likeness to the nearest reference", "score"
        ),
        "self_r@1": About("Self-retrieval R@1", "captions that find their own image first"),
        "self_r@5": About("Self-retrieval R@5", "captions that find it among the first five"),
        "self_bag_r@1": About(
            "Self-retrieval in bags", "captions that find it first among images like it"
        ),
    }

    @functools.cached_property
    def _loaded(self) -> Predictor:
        return predictors.load(self.checkpoint)

    def __call__(self, said: Captions) -> dict[str, float | Statistic]:
        judge = said.predictor if self.checkpoint is None else self._loaded
        image = _embed_images(judge, said)
        caption, truth = (
            self._encode(judge, said.predictions),
            [t for r in said.references for t in r],
        )
        ends = np.cumsum([len(row) for row in said.references])[:-1]
        references = np.split(self._encode(judge, truth), ends)
        made: dict[str, float | Statistic] = {
            "clip_score": Mean.of(clip_score.clip_score(image, caption)),
            "ref_clip_score": Mean.of(clip_score.ref_clip_score(image, caption, references)),
        }
        query = judge.encode_text(list(said.predictions)).astype(np.float64)
        own, everything = np.arange(len(image)), np.arange(len(image))
        every = [everything] * len(own)
        found = _places(query, image, every, max(self.ks))
        for k in self.ks:
            made[f"self_r@{k}"] = Mean.of(found < k)
            made[f"self_r@{k}_chance"] = min(1.0, k / len(own))
        if self.bag:
            size = min(self.bag, len(own))
            bags = composed.nearest(image, image, every, [[]] * len(own), size)
            # An image's equal may stand before it, so that its bag lacks it.
            bags = [np.union1d(bag[bag != i][: size - 1], [i]) for i, bag in enumerate(bags)]
            made["self_bag_r@1"] = Mean.of(_places(query, image, bags, 1) < 1)
            made["self_bag_r@1_chance"] = 1 / size
        return made

    def _encode(self, judge: Predictor, texts: Sequence[str]) -> Float[np.ndarray, "n width"]:
        return judge.encode_text([self.prefix + text for text in texts]).astype(np.float64)

    def protocol(self) -> dict[str, Any]:
        return {
            "judge": self.checkpoint or "the model itself",
            "prefix": self.prefix,
            "bag": self.bag,
        }


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """How rich the language of all captions together is, and how long they are.

    After Penn-Treebank tokenisation. distinct-n falls with the number of captions: compare equal
    numbers only.
    """

    about: ClassVar[dict[str, About]] = {
        "vocabulary": About("Vocabulary", "different words", "score"),
        "distinct_1": About("Distinct-1", "different words among all words", "score"),
        "distinct_2": About("Distinct-2", "different pairs of words among all", "score"),
        "repeated_2": About(
            "Repeated pairs",
            "pairs of words of a caption that it has said before",
            lower_is_better=True,
        ),
        "words_median": About("Words, median", "of a caption", "score"),
        "words_longest": About("Words, longest", "of a caption", "score"),
    }

    def __call__(self, said: Captions) -> dict[str, float | Statistic]:
        tokenised = [ptb.tokenize(caption) for caption in said.predictions]
        lengths = np.array([len(caption.split()) for caption in tokenised], np.float64)
        return {
            "vocabulary": float(diversity.vocabulary(tokenised)),
            "distinct_1": diversity.distinct(tokenised, 1),
            "distinct_2": diversity.distinct(tokenised, 2),
            "repeated_2": Mean.of(diversity.repeated(tokenised, 2)),
            "words_median": Median(lengths),
            "words_longest": float(lengths.max()),
        }

    def protocol(self) -> dict[str, Any]:
        return {"words": "Penn Treebank"}


def _embed_images(judge: Predictor, said: Captions) -> Float[np.ndarray, "n width"]:
    """The images as the judge's own contract prepares them."""
    view = base.View(said.source, tuple(said.index))
    embeddings = [
        judge.encode_image(batch["image"])
        for batch in base.examples(view, judge.contract, said.batch_size)
    ]
    found = np.concatenate(embeddings).astype(np.float64)
    if len(found) != len(said.index):
        refused = len(said.index) - len(found)
        raise UserError(f"the judge's contract refuses {refused} of {len(said.index)} images")
    return found


def _places(
    query: np.ndarray, gallery: np.ndarray, among: list[np.ndarray], k: int
) -> Float[np.ndarray, " query"]:
    """The place of item i for query i among the first k, counted from 0; infinite if beyond."""
    found = composed.nearest(query, gallery, among, [[i] for i in range(len(query))], k)
    places = [np.flatnonzero(row == i) for i, row in enumerate(found)]
    return np.array([place[0] if len(place) else np.inf for place in places], np.float64)
