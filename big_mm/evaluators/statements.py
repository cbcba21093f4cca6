"""Whether a statement holds for an image: entailment, true or false."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.answering import Ranking
from big_mm.evaluators.base import About
from big_mm.metrics import vqa
from big_mm.metrics.groups import AllRight
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError

_SHOWN = 12

TRUE_FALSE = (("true", "true"), ("false", "false"))
ENTAILMENT = (("entailment", "yes"), ("neutral", "maybe"), ("contradiction", "no"))


@dataclasses.dataclass(frozen=True)
class Statements(base.Evaluator):
    """Accuracy of the label that a model gives a statement about an image.

    SNLI-VE (arXiv:1901.06706): three labels; the premise is the image alone, and a system that
    also reads the Flickr caption does not compare. NLVR (ACL P17-2034), NLVR2 (arXiv:1811.00491):
    true or false; NLVR2's two images in their fixed order, side by side; its consistency is the
    share of distinct statements that are judged rightly for all their images. A classifier trained
    for the task is another setting than answering in words, as here. Chance is always giving the
    commonest label.

    Attributes:
      source: records with an image, a statement and its label; of the benchmarks' own files by
        `annotations.JsonLines`.
      labels: (label, word): how the records write a label, and the word that the model answers.
      statement, label: text features of the records.
      answerer: `answering.Ranking` among the words, or `answering.Generation`: an answer that is
        none of the words after `metrics.vqa.normalize` is wrong, and counted as `unreadable`.
      prompt: what stands before the word; {} is the statement.
      consistency: the feature that belongs to one statement, such as the statement itself.
      batch_size: images prepared at a time.
      limit: only the first records.
    """

    source: Source
    labels: tuple[tuple[str, str], ...] = TRUE_FALSE
    statement: str = "statement"
    label: str = "answer"
    answerer: Any = Ranking()
    prompt: str = "{} true or false? "
    consistency: str | None = None
    batch_size: int = 256
    limit: int | None = None

    place: ClassVar[int] = 52
    about: ClassVar[dict[str, About]] = {
        "accuracy": About("Statements judged rightly", "of all statements", headline=True),
        "consistency": About("Consistency", "statements judged rightly for all their images"),
        "unreadable": About("Unreadable", "answers that are no label", lower_is_better=True),
    }

    def __post_init__(self) -> None:
        words = [vqa.normalize(word) for _, word in self.labels]
        if len(set(words)) < len(words) or "" in words or len(words) < 2:
            raise UserError(f"the words of the labels must differ and say something: {words}")
        if len(dict(self.labels)) < len(self.labels):
            raise UserError("a label comes up twice")
        if self.prompt.count("{}") != 1:
            raise UserError(f"the prompt {self.prompt!r} must hold {{}} exactly once")

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: accuracy and that of each label, chance, consistency, unreadable, examples.

        Raises:
          UserError: a label without a word, or a model that cannot answer so.
        """
        names, words = zip(*self.labels, strict=True)
        read = {vqa.normalize(word): i for i, word in enumerate(words)}
        truth: list[int] = []
        said: list[int] = []
        groups: list[str] = []
        prompts: list[str] = []
        keys: list[str] = []
        shown: list[dict[str, Any]] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            statements = [texts[0] for texts in base.captions_of(batch, self.statement)]
            labels = [texts[0] for texts in base.captions_of(batch, self.label)]
            for key, label in zip(batch["key"], labels, strict=True):
                if label not in names:
                    raise UserError(
                        f"record {str(key)!r}: the label {label!r} is none of {', '.join(names)}"
                    )
            asked = [self.prompt.replace("{}", statement) for statement in statements]
            prompts += asked
            answers = self.answerer(predictor, batch["image"], asked, words)
            truth += [names.index(label) for label in labels]
            said += [read.get(vqa.normalize(answer), -1) for answer in answers]
            if self.consistency is not None:
                groups += [texts[0] for texts in base.captions_of(batch, self.consistency)]
            keys += list(map(str, batch["key"]))
            for i in range(min(len(labels), _SHOWN - len(shown))):
                right = said[i - len(labels)] == truth[i - len(labels)]
                shown.append(
                    {
                        "image": base.picture(batch["image"][i]),
                        "text": statements[i],
                        "results": [{"text": answers[i], "right": right}],
                        "truth": [labels[i]],
                    }
                )
        metrics = _metrics(names, np.array(truth), np.array(said))
        if groups:
            numbers = np.unique(groups, return_inverse=True)[1]
            metrics["consistency"] = AllRight((np.array(truth) == said).astype(float), numbers)
        protocol = {"prompt": self.prompt, "labels": dict(self.labels)}
        protocol |= self.answerer.protocol(predictor, prompts, words)
        return base.Result(
            metrics, {"answers": {"kind": "queries", "queries": shown}}, keys, protocol
        )


def _metrics(
    names: tuple[str, ...], truth: np.ndarray, said: np.ndarray
) -> dict[str, float | Statistic]:
    hits = (truth == said).astype(np.float64)
    made: dict[str, float | Statistic] = {
        "accuracy": Mean.of(hits),
        "accuracy_chance": float(np.bincount(truth).max() / len(truth)),
        "unreadable": Mean.of(said < 0),
        "examples": float(len(truth)),
    }
    for i, name in enumerate(names):
        of = (truth == i).astype(np.float64)
        if of.any():
            made[f"accuracy_{name}"] = Mean(hits * of, of)
    return made
