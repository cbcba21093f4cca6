"""Several captions of each image: how different they are, and how good the best one is."""

import dataclasses
from typing import ClassVar

import numpy as np

from big_mm.data.contract import Decoding
from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.metrics import cider, diversity, ptb
from big_mm.metrics.statistics import Mean
from big_mm.predictor import Predictor
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class CaptionSets(base.Evaluator):
    """Diversity of sampled captions: mBLEU-4 (arXiv:1703.10476) and distinct-1, -2 within each
    image's captions, Self-CIDEr (arXiv:1903.12020), and CIDEr-D of the mean and of the best caption
    (diversity is worthless without either). Document frequencies come from the references.

    Attributes:
      source: records with captions.
      decoding: must sample.
      samples: captions of each image; figures of other numbers do not compare.
      prefix: the words that captions begin with.
      references: the record's key with the reference captions.
      batch_size: images prepared at a time.
      limit: only the first records.
      seed: of the samples.
    """

    source: Source
    decoding: Decoding = Decoding(temperature=1.0)
    samples: int = 5
    prefix: str = ""
    references: str = "captions"
    batch_size: int = 256
    limit: int | None = None
    seed: int = 0

    place: ClassVar[int] = 32
    about: ClassVar[dict[str, About]] = {
        "mbleu4": About("mBLEU-4", "of a caption against the image's others", "score"),
        "self_cider": About("Self-CIDEr", "0 all alike, 1 all different", "score", headline=True),
        "distinct_1": About("Distinct-1", "different words of an image's captions", "score"),
        "distinct_2": About("Distinct-2", "different pairs of words", "score"),
        "cider_mean": About("CIDEr, mean", "of an image's captions", "score"),
        "cider_best": About("CIDEr, best", "of an image's captions (an oracle)", "score"),
    }

    def __post_init__(self) -> None:
        if not self.decoding.temperature or self.samples < 2:
            raise UserError("caption sets need a decoding that samples, and at least two samples")

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: mbleu4, self_cider, distinct_1, distinct_2, cider_mean, cider_best, examples.

        Raises:
          UserError: a record without references, or a model that does not caption.
        """
        sets: list[list[str]] = []
        references: list[list[str]] = []
        keys: list[str] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            drawn = []
            for draw in range(self.samples):
                seed = self.seed + len(keys) * self.samples + draw * len(batch["image"])
                tokens, _ = predictor.generate(
                    batch["image"], self.decoding, prefix=self.prefix, seed=seed
                )
                drawn.append(map(ptb.tokenize, predictor.contract.detokenize(tokens)))
            sets += [list(captions) for captions in zip(*drawn, strict=True)]
            references += [
                [ptb.tokenize(text) for text in row]
                for row in base.captions_of(batch, self.references)
            ]
            keys += list(map(str, batch["key"]))
        frequency = cider.DocumentFrequency.of(references)
        scores = np.array(
            [
                cider.cider_d(captions, [truths] * len(captions), frequency)
                for captions, truths in zip(sets, references, strict=True)
            ]
        )
        metrics = {
            "mbleu4": Mean.of([diversity.mbleu(captions) for captions in sets]),
            "self_cider": Mean.of([diversity.self_cider(c, frequency) for c in sets]),
            "distinct_1": Mean.of([diversity.distinct(captions, 1) for captions in sets]),
            "distinct_2": Mean.of([diversity.distinct(captions, 2) for captions in sets]),
            "cider_mean": Mean.of(scores.mean(axis=1)),
            "cider_best": Mean.of(scores.max(axis=1)),
            "examples": float(len(keys)),
        }
        protocol = {
            "samples": self.samples,
            "decoding": dataclasses.asdict(self.decoding),
            "prefix": self.prefix,
            "document frequency": "of the references",
        }
        return base.Result(metrics, keys=keys, protocol=protocol)
