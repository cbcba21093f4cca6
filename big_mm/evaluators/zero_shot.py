"""Classification by class names alone."""

import collections
import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from big_mm.data.records import Source
from big_mm.evaluators import base, prompts
from big_mm.evaluators.base import About
from big_mm.metrics import recall
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError

_SHOWN_CONFUSIONS = 8
_SHOWN_MISTAKES = 6


@dataclasses.dataclass(frozen=True)
class ZeroShot(base.Evaluator):
    """The class whose name is nearest to the image (arXiv:2103.00020, section 3.1).

    A class is the mean of the unit embeddings of its name in every template, brought back to unit
    length. Equal similarities count against the model. Chance is one over the number of classes.

    Attributes:
      source: records with a class number.
      classnames: in the order of the class numbers; None: the records' own `class_name`, so the
        schema needs extra=("class_name",), and the choice is among the classes that occur.
      templates: sentences with one {} (`prompts`).
      label: the record's key with the class number.
      batch_size: images prepared at a time.
      limit: only the first records.
    """

    source: Source
    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] = prompts.PLAIN
    label: str = "label"
    batch_size: int = 256
    limit: int | None = None

    place: ClassVar[int] = 10
    about: ClassVar[dict[str, About]] = {
        "accuracy": About(
            "Zero-shot accuracy",
            "images whose own class name is the nearest of all class names",
            headline=True,
        ),
        "top5": About(
            "Zero-shot top 5", "images whose own class name is among the five nearest class names"
        ),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: accuracy, top5 (of more than 5 classes), their chance levels, examples.

        Raises:
          UserError: no label, a label without a name, or a model without embeddings.
        """
        embeddings, labels, named, index, keys = self._embed_images(predictor)
        classnames, labels = self._classes(labels, named)
        classes = class_embeddings(predictor, classnames, self.templates)
        numbers = np.arange(len(classnames))
        ranking = recall.rank(embeddings, classes, labels, numbers, k=5)
        metrics: dict[str, float | Statistic] = {
            "accuracy": Mean.of(ranking.right[:, 0]),
            "accuracy_chance": 1 / len(classnames),
        }
        if len(classnames) > 5:
            metrics["top5"] = Mean.of(ranking.right[:, :5].any(axis=1))
            metrics["top5_chance"] = 5 / len(classnames)
        metrics["examples"] = float(len(labels))
        table = confusion_table(classnames, labels, ranking.indices[:, 0])
        table["mistakes"] = [
            {
                "image": base.picture_of(self.source, predictor.contract, index[i]),
                "true": classnames[labels[i]],
                "predicted": classnames[ranking.indices[i, 0]],
            }
            for i in np.flatnonzero(~ranking.right[:, 0])[:_SHOWN_MISTAKES]
        ]
        return base.Result(metrics, {"classes": table}, keys, {"templates": list(self.templates)})

    def _embed_images(
        self, predictor: Predictor
    ) -> tuple[
        Float[np.ndarray, "n width"],
        Int[np.ndarray, " n"],
        list[str | None],
        list[int],
        list[str],
    ]:
        """Embeddings, labels, class names, numbers and keys of the sound records."""
        embeddings, labels = [], []
        named: list[str | None] = []
        index: list[int] = []
        keys: list[str] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            if self.label not in batch:
                raise UserError(f"the records have no {self.label!r}: set the schema's label")
            embeddings.append(predictor.encode_image(batch["image"]))
            labels.append(_numbers(batch[self.label], batch["key"]))
            names = batch.get("class_name", [None] * len(labels[-1]))
            named += [None if name is None else base.first_text(name) for name in names]
            index += batch["index"].tolist()
            keys += list(map(str, batch["key"]))
        return np.concatenate(embeddings), np.concatenate(labels), named, index, keys

    def _classes(
        self, labels: Int[np.ndarray, " n"], named: list[str | None]
    ) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
        """The class names, and the labels as positions in them."""
        if self.classnames is not None:
            if labels.max() >= len(self.classnames):
                raise UserError(
                    f"label {labels.max()} has no name among the {len(self.classnames)} classnames"
                )
            return self.classnames, labels
        if None in named:
            raise UserError(
                "classnames is not set and the records have no class_name: give classnames=(...), "
                'or a schema with extra=("class_name",)'
            )
        occurring, positions = np.unique(labels, return_inverse=True)
        first = {label: name for label, name in zip(labels[::-1], named[::-1], strict=True)}
        return tuple(first[label] for label in occurring), positions


def class_embeddings(
    predictor: Predictor, classnames: tuple[str, ...], templates: tuple[str, ...]
) -> Float[np.ndarray, "classes width"]:
    """Unit mean over the templates of the unit text embeddings."""
    texts = predictor.encode_text(prompts.fill(templates, classnames))
    texts = texts.reshape(len(classnames), len(templates), -1).astype(np.float64)
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    mean = texts.mean(axis=1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def confusion_table(
    classnames: tuple[str, ...],
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    """For the report: examples and hits of every class, and the most frequent confusions."""
    wrong = collections.Counter(
        (int(t), int(p)) for t, p in zip(labels, predicted, strict=True) if t != p
    )
    counts = np.bincount(labels, minlength=len(classnames))
    right = np.bincount(labels[labels == predicted], minlength=len(classnames))
    frequent = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_CONFUSIONS]
    return {
        "kind": "classes",
        "classnames": list(classnames),
        "examples": counts.tolist(),
        "right": right.tolist(),
        "confusions": [
            {
                "true": classnames[t],
                "predicted": classnames[p],
                "count": count,
                "of": int(counts[t]),
            }
            for (t, p), count in frequent
        ],
    }


def _numbers(labels: Any, keys: Any) -> Int[np.ndarray, " n"]:
    """Class numbers as an array; refuses records without one."""
    numbers = np.array([_number(label) for label in labels], np.int64)
    if (numbers < 0).any():
        key = str(keys[int(np.argmax(numbers < 0))])
        raise UserError(f"record {key!r} has no label: does the source's schema name one?")
    return numbers


def _number(label: Any) -> int:
    """A class number, from the batch's own array or from a feature's list."""
    values = np.ravel(label) if label is not None else ()
    return int(values[0]) if len(values) else -1
