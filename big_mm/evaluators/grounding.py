"""Whether the caption decoder looks at the image."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.evaluators.captioning import derangement
from big_mm.metrics.statistics import Mean
from big_mm.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class GroundingGap(base.Evaluator):
    """Caption loss given the wrong image minus caption loss given the true one, in nats a token.

    A decoder that ignores the image has a gap of 0 however low its loss is. The images are
    exchanged by a fixed order in which none stays in place; each record's first caption is scored.
    Records that share a caption make the gap smaller than it is.

    Attributes:
      source: records with captions.
      captions: the record's key with the captions.
      limit: the first so many records, whose prepared pictures are held in memory.
      batch_size: images prepared at a time.
    """

    source: Source
    captions: str = "captions"
    limit: int = 512
    batch_size: int = 256

    place: ClassVar[int] = 40
    about: ClassVar[dict[str, About]] = {
        "gap": About(
            "Grounding gap",
            "how much better the true image explains a caption than another image does, "
            "in nats a token",
            unit="nats",
            headline=True,
        ),
        "preferred": About(
            "True image preferred", "captions that the true image makes likelier than another one"
        ),
        "loss": About(
            "Caption loss", "minus log-probability of a token", "nats", lower_is_better=True
        ),
        "loss_shuffled": About(
            "Caption loss, other image", "the same with another record's image", "nats"
        ),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: gap, loss, loss_shuffled, preferred, their chance levels, examples.

        Raises:
          UserError: fewer than two records, or a model that does not caption.
        """
        images, texts, keys = [], [], []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            images.append(batch["image"])
            keys += list(map(str, batch["key"]))
            texts += [captions[0] for captions in base.captions_of(batch, self.captions)]
        pictures = np.concatenate(images)
        true, tokens = predictor.caption_log_likelihood(pictures, texts)
        other, _ = predictor.caption_log_likelihood(pictures[derangement(len(texts))], texts)
        true, other = true.astype(np.float64), other.astype(np.float64)
        tokens = tokens.astype(np.float64)
        metrics = {
            "gap": Mean(true - other, tokens),
            "gap_chance": 0.0,
            "preferred": Mean.of(true > other),
            "preferred_chance": 0.5,
            "loss": Mean(-true, tokens),
            "loss_chance": math.log(predictor.contract.tokenizer.vocab_size),
            "loss_shuffled": Mean(-other, tokens),
            "examples": float(len(texts)),
        }
        protocol = {"captions": "the first of each image", "other image": "a fixed derangement"}
        return base.Result(metrics, keys=keys, protocol=protocol)
