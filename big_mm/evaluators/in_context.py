"""Captions of an image behind other images with their captions: few-shot captioning in context."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from big_mm.data.contract import Decoding
from big_mm.data.documents import Documents, document
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.metrics import captioning as caption_metrics
from big_mm.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class InContext(base.Evaluator):
    """The caption of each document's last image, given the first caption of each one before it.

    Attributes:
      source: documents of shots + 1 images.
      limit: only the first documents.
    """

    source: Documents
    decoding: Decoding | None = None
    limit: int | None = None

    place: ClassVar[int] = 31
    about: ClassVar[dict[str, About]] = {
        "cider": About("Few-shot CIDEr", "of captions in context", unit="score", headline=True)
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: those of `metrics.captioning`, examples."""
        contract = predictor.contract
        count = min(len(self.source), self.limit or len(self.source))
        records = [self.source[i] for i in range(count)]
        images = np.stack([[contract.image(x) for x in record["images"]] for record in records])
        prefix = np.full((count, contract.max_len), contract.require_tokenizer().free_id, np.int32)
        given = []
        for row, record in zip(prefix, records, strict=True):
            shots = [texts[0] for texts in record["texts"][:-1]]
            # An empty text is the bos that stands for the image in question.
            words = document(contract, [*shots, ""])
            row[: len(words)] = words
            given.append(len(words))
        how = self.decoding or contract.decoding
        tokens, _ = predictor.generate(images, how, prefix=prefix)
        said = contract.detokenize([row[n:].tolist() for row, n in zip(tokens, given, strict=True)])
        references = [record["captions"] for record in records]
        metrics: dict[str, Any] = dict(caption_metrics.statistics(said, references))
        metrics["examples"] = float(count)
        protocol = {"shots": self.source.images - 1, "decoding": dataclasses.asdict(how)}
        keys = [str(record["key"]) for record in records]
        return base.Result(metrics, keys=keys, protocol=protocol)
