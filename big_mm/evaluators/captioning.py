"""Captions, scored against people's and against what is in the image."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from big_mm.data import scenes
from big_mm.data.contract import Decoding
from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.evaluators.caption_figures import Captions
from big_mm.metrics import captioning as caption_metrics
from big_mm.metrics import ptb
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError

_SHOWN = 24
_SHOWN_REFERENCES = 2


class Scorer(Protocol):
    """A further score of one caption: names and numbers, averaged over the images.

    `about` (optional) describes them to the report.
    """

    def __call__(self, prediction: str, record: Mapping[str, Any]) -> dict[str, float]:
        """Scores of a caption for a record (without its picture)."""


@dataclasses.dataclass(frozen=True)
class SceneAccuracy:
    """Whether a caption tells the truth about a scene of the embedded world.

    Attributes:
      scene: the record's key with the scene graph; the schema needs extra=("scene",).
    """

    scene: str = "scene"

    about: ClassVar[dict[str, About]] = {
        "exact": About(
            "Exact attributes",
            "captions that name every object's colour and shape and the right number of each",
            headline=True,
        ),
        "true": About("Nothing false", "captions that say at least one thing and nothing false"),
        "colours": About("Colours", "captions that name exactly the colours in the image"),
        "shapes": About("Shapes", "captions that name exactly the shapes in the image"),
        "counts": About("Counts", "captions whose numbers are those of the groups in the image"),
        "precision": About("Precision", "of the groups a caption names, those that are there"),
        "recall": About("Recall", "of the groups in the image, those the caption names"),
    }

    def __call__(self, prediction: str, record: Mapping[str, Any]) -> dict[str, float]:
        if self.scene not in record:
            raise UserError(
                f'the records have no {self.scene!r}: give the schema extra=("{self.scene}",)'
            )
        verdicts = scenes.check_caption(prediction, base.first_text(record[self.scene]))
        return {name: float(value) for name, value in verdicts.items()}


@dataclasses.dataclass(frozen=True)
class Captioning(base.Evaluator):
    """BLEU-1..4, ROUGE-L and CIDEr-D as the official scorer gives them, and the share of distinct
    captions, which falls when a model repeats itself.

    Chance is the score of a fluent caption of the wrong image: each image is given the first
    reference of another one. What the scores depend on is stored with them: decoding, prefix,
    number of images and references (document frequencies come from the evaluated references, so
    scores of different sets or limits do not compare).

    Attributes:
      source: records with captions.
      decoding: None takes the contract's.
      prefix: the words that captions begin with; they are part of the scored caption.
      references: the record's key with the reference captions.
      scorer: a further score of each caption (`Scorer`).
      figures: further figures of all captions (`caption_figures`).
      batch_size: images prepared at a time.
      limit: only the first records.
      seed: of the samples, if the decoding samples.
    """

    source: Source
    decoding: Decoding | None = None
    prefix: str = ""
    references: str = "captions"
    scorer: Any = None
    figures: tuple[Any, ...] = ()
    batch_size: int = 256
    limit: int | None = None
    seed: int = 0

    place: ClassVar[int] = 30

    @property
    def about(self) -> dict[str, About]:
        made = _ABOUT | getattr(self.scorer, "about", {})
        return functools.reduce(operator.or_, (getattr(f, "about", {}) for f in self.figures), made)

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: bleu_1..4, rouge_l, cider, the scorer's, their chance levels; distinct, words;
        those of the figures.

        Raises:
          UserError: a record without references, fewer than two records, or a model that does not
            caption.
        """
        how = self.decoding or predictor.contract.decoding
        predictions: list[str] = []
        references: list[list[str]] = []
        records: list[dict[str, Any]] = []
        keys: list[str] = []
        pictures: list[str] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            seed = self.seed + len(predictions)
            tokens, _ = predictor.generate(batch["image"], how, prefix=self.prefix, seed=seed)
            predictions += predictor.contract.detokenize(tokens)
            references += base.captions_of(batch, self.references)
            keys += list(map(str, batch["key"]))
            records += base.rows(batch)
            pictures += [base.picture(image) for image in batch["image"][: _SHOWN - len(pictures)]]
        others = [references[i][0] for i in derangement(len(references))]
        scores = self._scores(predictions, references, records)
        chance = self._scores(others, references, records)
        metrics: dict[str, float | Statistic] = dict(scores)
        metrics |= {f"{name}_chance": found.value() for name, found in chance.items()}
        metrics["distinct"] = len(set(predictions)) / len(predictions)
        metrics["words"] = Mean.of([len(p.split()) for p in predictions])
        metrics["examples"] = float(len(predictions))
        index = [int(record["index"]) for record in records]
        said = Captions(predictions, references, self.source, index, predictor, self.batch_size)
        for figure in self.figures:
            metrics |= figure(said)
        shown = [
            {
                "image": pictures[i],
                "prediction": predictions[i],
                "references": references[i][:_SHOWN_REFERENCES],
                "unmatched": unmatched_words(predictions[i], references[i]),
                "scores": {} if self.scorer is None else self.scorer(predictions[i], records[i]),
            }
            for i in range(len(pictures))
        ]
        protocol = {
            "decoding": dataclasses.asdict(how),
            "prefix": self.prefix,
            "references": sum(map(len, references)),
            "document frequency": "of these references",
        }
        protocol |= {type(figure).__name__.lower(): figure.protocol() for figure in self.figures}
        return base.Result(
            metrics, {"captions": {"kind": "captions", "examples": shown}}, keys, protocol
        )

    def _scores(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        records: Sequence[Mapping[str, Any]],
    ) -> dict[str, Statistic]:
        scores = caption_metrics.statistics(predictions, references)
        if self.scorer is not None:
            rows = [self.scorer(p, record) for p, record in zip(predictions, records, strict=True)]
            scores |= {name: Mean.of([row[name] for row in rows]) for name in rows[0]}
        return scores


_ABOUT = {
    "cider": About(
        "CIDEr",
        "agreement with people's captions, rare words counting more; 0 to 10, papers print it "
        "times 100",
        unit="score",
        headline=True,
    ),
    "bleu_1": About("BLEU-1", "words shared with a reference", unit="score"),
    "bleu_2": About("BLEU-2", "words and pairs of words shared with a reference", unit="score"),
    "bleu_3": About("BLEU-3", "runs of up to 3 words shared with a reference", unit="score"),
    "bleu_4": About("BLEU-4", "runs of up to 4 words shared with a reference", unit="score"),
    "rouge_l": About("ROUGE-L", "words in the same order as in a reference", unit="score"),
    "distinct": About("Distinct captions", "different captions among all; low when it repeats"),
    "words": About("Words", "mean length of a caption", unit="score"),
}


def derangement(count: int) -> list[int]:
    """A fixed random order in which nothing stays in place (one cycle, by Sattolo's algorithm).

    Raises:
      UserError: fewer than two things.
    """
    if count < 2:
        raise UserError(f"{count} usable records are too few: at least two are needed")
    rng = np.random.default_rng(0)
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = int(rng.integers(i))
        order[i], order[j] = order[j], order[i]
    return order


def unmatched_words(prediction: str, references: Sequence[str]) -> list[str]:
    """Words of the prediction that no reference contains, in the scorer's tokenisation."""
    known = {word for reference in references for word in ptb.tokenize(reference).split()}
    return sorted(set(ptb.tokenize(prediction).split()) - known)
