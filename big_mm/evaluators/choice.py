"""Choosing the text that fits an image among texts that nearly do."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.evaluators.scoring import Similarity, cut_texts, joined, refuse_equal
from big_mm.metrics.choice import chosen
from big_mm.metrics.groups import Informedness
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError

_SHOWN = 12
COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclasses.dataclass(frozen=True)
class Item:
    """The texts among which to choose for an image, and the number of the right one.

    Attributes:
      lure: the number of a text that is wrong in a way to be counted, or -1.
    """

    texts: tuple[str, ...]
    right: int
    lure: int = -1


class Candidates(Protocol):
    """What there is to choose from.

    `classes`: the candidates are the same for all records, so that rates of each one make sense;
    `ordered`: they are numbers.
    """

    classes: bool
    ordered: bool

    def of(self, record: Mapping[str, Any]) -> Item:
        """The item of a record."""


@dataclasses.dataclass(frozen=True)
class Negatives:
    """A true text against the record's own false ones: attribute, object and relation swaps as in
    ARO (arXiv:2210.01936) and SugarCrepe (arXiv:2306.14610).

    Attributes:
      right, wrong: text features; of `right` the first counts, of `wrong` all.
    """

    right: str = "captions"
    wrong: str = "negatives"

    classes: ClassVar[bool] = False
    ordered: ClassVar[bool] = False

    def of(self, record: Mapping[str, Any]) -> Item:
        right, wrong = _texts(record, self.right)[0], _texts(record, self.wrong)
        if right in wrong:
            raise UserError(f"record {record['key']!r}: {right!r} is both right and wrong")
        return Item((right, *wrong), 0)


@dataclasses.dataclass(frozen=True)
class Options:
    """The same texts for all records, the right one by class number: data-type identification
    (arXiv:2310.08577), or any other prompt set.

    Attributes:
      texts: in the order of the class numbers.
      label: the record's key with the class number.
    """

    texts: tuple[str, ...]
    label: str = "label"

    classes: ClassVar[bool] = True
    ordered: ClassVar[bool] = False

    def of(self, record: Mapping[str, Any]) -> Item:
        label = base.class_number(record.get(self.label))
        if not 0 <= label < len(self.texts):
            raise UserError(
                f"record {record['key']!r}: {self.label} {label} is none of the "
                f"{len(self.texts)} texts"
            )
        return Item(tuple(self.texts), label)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The caption with its number exchanged (CountBench, arXiv:2302.12066, section 4.1).

    Attributes:
      caption: text feature, whose first text has exactly one of the number words.
      words: in ascending order.
    """

    caption: str = "captions"
    words: tuple[str, ...] = COUNTS

    classes: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    def of(self, record: Mapping[str, Any]) -> Item:
        text = _texts(record, self.caption)[0]
        found = re.findall(rf"\b(?:{'|'.join(self.words)})\b", text, re.IGNORECASE)
        if len(found) != 1:
            raise UserError(
                f"record {record['key']!r}: {text!r} must have exactly one of the words "
                f"{', '.join(self.words)}; it has {len(found)}"
            )
        exchanged = tuple(re.sub(rf"\b{found[0]}\b", word, text) for word in self.words)
        return Item(exchanged, self.words.index(found[0].lower()))


@dataclasses.dataclass(frozen=True)
class FirstWord:
    """The caption with the first of some words exchanged: a question that each of them answers.

    Attributes:
      words: the answers, such as all colours.
      caption: text feature, whose first text has at least one of them.
    """

    words: tuple[str, ...]
    caption: str = "captions"

    classes: ClassVar[bool] = True
    ordered: ClassVar[bool] = False

    def of(self, record: Mapping[str, Any]) -> Item:
        text = _texts(record, self.caption)[0]
        found = re.search(rf"\b(?:{'|'.join(self.words)})\b", text)
        if not found:
            raise UserError(f"record {record['key']!r}: {text!r} has no {', '.join(self.words)}")
        before, after = text[: found.start()], text[found.end() :]
        texts = tuple(before + word + after for word in self.words)
        return Item(texts, self.words.index(found.group()))


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Which attribute one of two objects has, where the other object has another one: the concept
    association bias (arXiv:2212.12043) is the share of images for which the other's is chosen.

    Attributes:
      options: the attributes to choose from.
      prompt: text feature with {} in place of the attribute: "the colour of the star is {}".
      right, lure: text features: the attribute of the object asked for, and of the other.
    """

    options: tuple[str, ...]
    prompt: str = "prompt"
    right: str = "attribute"
    lure: str = "other_attribute"

    classes: ClassVar[bool] = True
    ordered: ClassVar[bool] = False

    def of(self, record: Mapping[str, Any]) -> Item:
        prompt = _texts(record, self.prompt)[0]
        if prompt.count("{}") != 1:
            raise UserError(f"record {record['key']!r}: {prompt!r} must hold {{}} exactly once")
        right, lure = (_texts(record, name)[0] for name in (self.right, self.lure))
        for name in (right, lure):
            if name not in self.options:
                raise UserError(f"record {record['key']!r}: {name!r} is none of the options")
        if right == lure:
            raise UserError(f"record {record['key']!r}: both objects have {right!r}")
        places = (self.options.index(right), self.options.index(lure))
        return Item(tuple(prompt.replace("{}", name) for name in self.options), *places)


@dataclasses.dataclass(frozen=True)
class Choice(base.Evaluator):
    """The share of images whose right text scores best; equal scores count as wrong.

    Attributes:
      source: records with an image and what `candidates` reads.
      candidates: `Negatives`, `Options`, `Counts` or `Attributes`.
      scorer: `scoring.Similarity`, or `scoring.Likelihood` for a caption decoder (the two do not
        compare: a language model prefers fluent texts whatever the image).
      prefix: put before each text.
      category: a text feature by which the accuracy is also given (SugarCrepe's kinds of swaps).
      batch_size: images prepared at a time.
      limit: only the first records.
    """

    source: Source
    candidates: Any = Negatives()
    scorer: Any = Similarity()
    prefix: str = ""
    category: str | None = None
    batch_size: int = 256
    limit: int | None = None

    place: ClassVar[int] = 60
    about: ClassVar[dict[str, About]] = {
        "accuracy": About(
            "Right text chosen", "images whose right text scores best", headline=True
        ),
        "informedness": About(
            "Informedness", "hits minus false alarms, mean over the texts", unit="score"
        ),
        "deviation": About(
            "Count deviation", "mean distance to the right place", "score", lower_is_better=True
        ),
        "lured": About(
            "Concept association bias",
            "images for which the other object's attribute is chosen",
            lower_is_better=True,
        ),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: accuracy (also by category) and its chance; informedness of classes, deviation
        of numbers, lured where there is a lure; examples.

        Raises:
          UserError: a record that `candidates` refuses, or a model that cannot score so.
        """
        items: list[Item] = []
        answers: list[int] = []
        categories: list[str] = []
        keys: list[str] = []
        shown: list[dict[str, Any]] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            records = base.rows(batch)
            here = [self.candidates.of(record) for record in records]
            texts = [item.texts for item in here]
            prefixes = [self.prefix] * len(here)
            refuse_equal(predictor.contract, joined(prefixes, texts))
            scores = self.scorer(predictor, batch["image"], texts, prefixes)
            answers += chosen(scores, np.array([item.right for item in here])).tolist()
            if self.category is not None:
                categories += [_texts(record, self.category)[0] for record in records]
            for i in range(min(len(here), _SHOWN - len(shown))):
                shown.append(_shown(batch["image"][i], here[i], scores[i]))
            items += here
            keys += list(map(str, batch["key"]))
        metrics = self._metrics(items, np.array(answers), np.array(categories))
        protocol = {
            "candidates": type(self.candidates).__name__.lower(),
            "score": self.scorer.protocol(),
            "prefix": self.prefix,
            "equal scores": "count as wrong",
        }
        protocol |= cut_texts(
            predictor.contract, (self.prefix + text for item in items for text in item.texts)
        )
        return base.Result(
            metrics, {"choices": {"kind": "queries", "queries": shown}}, keys, protocol
        )

    def _metrics(
        self, items: Sequence[Item], answers: np.ndarray, categories: np.ndarray
    ) -> dict[str, float | Statistic]:
        right = np.array([item.right for item in items])
        hits = (answers == right).astype(np.float64)
        chance = np.mean([1 / len(item.texts) for item in items])
        made: dict[str, float | Statistic] = {
            "accuracy": Mean.of(hits),
            "accuracy_chance": float(chance),
        }
        for name in np.unique(categories).tolist():
            of = (categories == name).astype(np.float64)
            made[f"accuracy_{name}"] = Mean(hits * of, of)
        if self.candidates.classes:
            informedness = Informedness(right, answers)
            made |= {"informedness": informedness, "informedness_chance": 0.0}
        if self.candidates.ordered:
            made["deviation"] = Mean.of(np.abs(answers - right))
        lures = np.array([item.lure for item in items])
        if (lures >= 0).all():
            made |= {"lured": Mean.of(answers == lures), "lured_chance": float(chance)}
        return made | {"examples": float(len(items))}


def _texts(record: Mapping[str, Any], name: str) -> list[str]:
    found = base.texts(record.get(name))
    if not found:
        raise UserError(
            f"record {record['key']!r} has nothing in {name!r}: does the source's schema name it?"
        )
    return found


def _shown(image: np.ndarray, item: Item, scores: np.ndarray) -> dict[str, Any]:
    """An image with its three best-scored texts."""
    order = np.argsort(-scores[: len(item.texts)], kind="stable")[:3]
    results = [{"text": item.texts[i], "right": int(i) == item.right} for i in order]
    return {"image": base.picture(image), "results": results, "truth": [item.texts[item.right]]}
