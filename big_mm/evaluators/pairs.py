"""Two images and two texts of the same words: which belongs to which."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.evaluators.scoring import Similarity, cut_texts, joined, refuse_equal
from big_mm.metrics.choice import winoground
from big_mm.metrics.statistics import Mean
from big_mm.predictor import Predictor
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Pairs(base.Evaluator):
    """Winoground's text, image and group score (arXiv:2204.03162, section 3.2).

    Two records make an item: each an image with its own caption. Strict inequalities, so equal
    scores count as wrong. A likelihood is of the text given the image: its image score compares one
    text under two images, its text score two texts under one image.

    Attributes:
      source: records with an image, a caption and `pair`.
      pair: feature that two records share.
      caption: text feature; the first one counts.
      scorer: a `scoring.TextScorer`.
      prefix: put before each text.
      batch_size: images prepared at a time; all prepared pictures are held in memory.
    """

    source: Source
    pair: str = "group"
    caption: str = "captions"
    scorer: Any = Similarity()
    prefix: str = ""
    batch_size: int = 256

    place: ClassVar[int] = 61
    about: ClassVar[dict[str, About]] = {
        "text": About("Text score", "pairs whose images each prefer their own text"),
        "image": About("Image score", "pairs whose texts each prefer their own image"),
        "group": About("Group score", "pairs of which both hold", headline=True),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: text, image, group, their chance levels, examples (pairs).

        Raises:
          UserError: a group that has not two records, or a model that cannot score so.
        """
        images: list[np.ndarray] = []
        captions: list[str] = []
        members: dict[str, list[int]] = {}
        for batch in base.examples(self.source, predictor.contract, self.batch_size):
            names = base.captions_of(batch, self.pair)
            for row, (texts, name) in enumerate(
                zip(base.captions_of(batch, self.caption), names, strict=True)
            ):
                members.setdefault(name[0], []).append(len(captions))
                captions.append(texts[0])
                images.append(batch["image"][row])
        for name, rows in members.items():
            if len(rows) != 2:
                raise UserError(f"{self.pair} {name!r} has {len(rows)} sound records, not two")
        rows = [row for pair in members.values() for row in pair]
        texts = [[captions[i] for i in pair] for pair in members.values() for _ in pair]
        pictures = np.stack([images[row] for row in rows])
        prefixes = [self.prefix] * len(rows)
        refuse_equal(predictor.contract, joined(prefixes, texts))
        scores = self.scorer(predictor, pictures, texts, prefixes)
        found = winoground(list(scores.reshape(-1, 2, 2)))
        chance = {"text_chance": 1 / 4, "image_chance": 1 / 4, "group_chance": 1 / 6}
        metrics = {name: Mean.of(value) for name, value in found.items()} | chance
        metrics["examples"] = float(len(members))
        protocol = {"score": self.scorer.protocol(), "prefix": self.prefix}
        protocol |= cut_texts(predictor.contract, (self.prefix + text for text in captions))
        return base.Result(metrics, keys=list(members), protocol=protocol)
