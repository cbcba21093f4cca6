"""Classifiers trained on a frozen model's pooled features: linear, few-shot, nearest neighbours.

What they share: features come from `features.extract`, so several probes of one source compute them
once; a class is what occurs among the training labels; chance is what the most frequent training
class alone would reach.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from big_mm import search
from big_mm.data.records import Source
from big_mm.evaluators import base, features
from big_mm.evaluators.base import About
from big_mm.evaluators.features import Features
from big_mm.evaluators.zero_shot import confusion_table
from big_mm.metrics.recall import SameId
from big_mm.metrics.statistics import ClassMean, Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.probing import logistic, neighbours, ridge
from big_mm.spec import UserError, choose

_SHOWN_MISTAKES = 6
_KNOWN_SHOTS = (1, 2, 4, 5, 8, 10, 16, 25, 50, 100)
_KNOWN_KS = (1, 3, 5, 10, 20, 50, 100, 200)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Features with class positions, those of the training labels in ascending order."""

    features: Features
    classes: Int[np.ndarray, " n"]

    @property
    def values(self) -> np.ndarray:
        """[n, ...] features."""
        return self.features.values


@dataclasses.dataclass(frozen=True)
class Probe(base.Evaluator):
    """Base of the probes.

    Attributes:
      train, test: records with a class number; different ones.
      validation: where the probe chooses its settings; None: a part of `train` (see `holdout`).
      output: which of the model's outputs; CLIP's protocol is "image_features", before the
        projection to the shared space.
      label: the records' key with the class number.
      dtype: of the features; "float16" halves what they take.
      batch_size: pictures prepared at a time.
      train_limit, limit: only the first records of `train` and of `test`.
    """

    train: Source
    test: Source
    validation: Source | None = None
    output: str = "image_features"
    label: str = "label"
    dtype: str = "float32"
    batch_size: int = 256
    train_limit: int | None = None
    limit: int | None = None

    place: ClassVar[int] = 50

    @property
    def source(self) -> Source:
        """The records that the metrics are of."""
        return self.test

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: accuracy and mean_per_class of each setting, their chance levels, examples.

        Raises:
          UserError: records without label, a test class without training examples, features that
            are not finite, or a model without the output.
        """
        train = self._split(predictor, self.train, self.train_limit, None)
        test = self._split(predictor, self.test, self.limit, train.features)
        validation = None
        if self.validation is not None:
            validation = self._split(predictor, self.validation, None, train.features)
        classes = len(np.unique(train.classes))
        predicted, shown, protocol = self.classify(predictor, train, test, validation, classes)
        metrics = _scores(predicted, train.classes, test.classes)
        protocol = {"features": self.output, "training images": len(train.features)} | protocol
        protocol |= _overlap(train.features, test.features)
        table = confusion_table(self.names(train.features), test.classes, shown)
        index = test.features.index.tolist()
        table["mistakes"] = [
            {
                "image": base.picture_of(self.test, predictor.contract, index[i]),
                "true": table["classnames"][test.classes[i]],
                "predicted": table["classnames"][shown[i]],
            }
            for i in np.flatnonzero(shown != test.classes)[:_SHOWN_MISTAKES]
        ]
        return base.Result(metrics, {"classes": table}, test.features.keys, protocol)

    @abc.abstractmethod
    def classify(
        self,
        predictor: Predictor,
        train: Split,
        test: Split,
        validation: Split | None,
        classes: int,
    ) -> tuple[dict[str, Int[np.ndarray, "tries n"]], Int[np.ndarray, " n"], dict[str, Any]]:
        """Classes of the test images by setting ("" or "_..." behind the metric's name), of one or
        several tries; those to show; and what there is to say in the protocol.
        """

    def _split(
        self, predictor: Predictor, source: Source, limit: int | None, train: Features | None
    ) -> Split:
        found = features.extract(
            predictor,
            source,
            self.output,
            label=self.label,
            limit=limit,
            dtype=self.dtype,
            batch_size=self.batch_size,
        )
        if (found.labels < 0).any():
            key = found.keys[int(np.argmax(found.labels < 0))]
            raise UserError(f"record {key!r} has no {self.label!r}: does the schema name one?")
        known = np.unique((found if train is None else train).labels)
        if len(known) < 2:
            raise UserError(f"a probe needs two classes; all training labels are {known[0]}")
        if not (there := np.isin(found.labels, known)).all():
            missing = found.labels[int(np.argmin(there))]
            raise UserError(
                f"class {missing} has no training example (record {found.keys[np.argmin(there)]!r})"
            )
        return Split(found, np.searchsorted(known, found.labels))

    def names(self, train: Features) -> tuple[str, ...]:
        """The records' class_name where they have one, else the label."""
        occurring, first = np.unique(train.labels, return_index=True)
        records = features.read(self.train, train.index[first])
        named = [base.texts(record.get("class_name")) for record in records]
        return tuple(
            name[0] if name else str(label) for name, label in zip(named, occurring, strict=True)
        )


def about_accuracy(setting: str, name: str, text: str, headline: bool = True) -> dict[str, About]:
    """What the two metrics of a setting are."""
    return {
        f"accuracy{setting}": About(name, f"images classified rightly {text}", headline=headline),
        f"mean_per_class{setting}": About(
            f"{name}, mean per class", f"accuracy of each class {text}, averaged over classes"
        ),
    }


@dataclasses.dataclass(frozen=True)
class LinearProbe(Probe):
    """Logistic regression on frozen features: CLIP's protocol (arXiv:2103.00020, appendix A.3).

    Multinomial, by L-BFGS on all rows, at most 1,000 iterations from zero, the bias unregularised;
    C by a binary search over 97 values from 1e-6 to 1e6 on the validation examples (of equal
    accuracies the smallest C), then one fit of training and validation examples together. Equal to
    scikit-learn's LogisticRegression at the same C (`probing.logistic`).

    Attributes:
      c: a fixed C, and no search; None: the search.
      holdout: share of each class's training examples for the search where there is no
        `validation`, drawn by a fixed seed.
      iterations: of L-BFGS.
      tolerance: of the gradient; see `logistic.LogisticRegression`.
    """

    c: float | None = None
    holdout: float = 0.1
    iterations: int = 1000
    tolerance: float = 1e-6

    about: ClassVar[dict[str, About]] = about_accuracy("", "Linear probe", "by logistic regression")

    def classify(self, predictor, train, test, validation, classes):
        """As of `Probe`."""
        model, protocol = self.fit(predictor, train, validation, classes)
        predicted = model.predict(test.values)
        return {"": predicted[None]}, predicted, protocol

    def fit(
        self,
        predictor: Predictor,
        train: Split,
        validation: Split | None,
        classes: int,
        prior: Float[np.ndarray, "width classes"] | None = None,
    ) -> tuple[logistic.Linear, dict[str, Any]]:
        """The classifier at the best C, and how it was found; `prior` as of `logistic`."""
        values, labels = train.values, train.classes
        fitted = np.ones(len(labels), bool)
        if self.c is None and validation is None:
            fitted = ~held_out(labels, self.holdout)
        elif validation is not None:
            values = np.concatenate([values, validation.values])
            labels = np.concatenate([labels, validation.classes])
            fitted = np.arange(len(labels)) < len(train.classes)
        regression = logistic.LogisticRegression(
            values,
            labels,
            classes,
            iterations=self.iterations,
            tolerance=self.tolerance,
            mesh=predictor.mesh,
        )
        tried: dict[float, float] = {}
        if self.c is None:
            rest = values[~fitted], labels[~fitted]

            def accuracy(c: float) -> float:
                model = regression.fit(c, fitted, prior)
                return float((model.predict(rest[0]) == rest[1]).mean())

            tried = logistic.sweep(accuracy)
        model = regression.fit(self.c or logistic.best(tried), prior=prior)
        protocol = {
            "C": round(model.c, 9),
            "C chosen on": self._chosen_on(validation, int((~fitted).sum())),
            "iterations": model.iterations,
        }
        if model.gradient > self.tolerance:
            protocol["gradient left"] = float(f"{model.gradient:.1e}")
        return model, protocol

    def _chosen_on(self, validation: Split | None, count: int) -> str:
        if self.c is not None:
            return "given"
        where = "held out of each training class" if validation is None else "validation images"
        return f"{count} {where}"


def held_out(labels: Int[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """True for that share of each class (at least one, never all), drawn by seed 0.

    Raises:
      UserError: a class of one example, or a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UserError(f"holdout={share} must be between 0 and 1")
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(labels), bool)
    for number in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == number))
        if len(rows) < 2:
            raise UserError(
                f"class {number} has one training example: nothing to hold out for the choice of "
                "C; give a validation source, or c=..."
            )
        chosen[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return chosen


@dataclasses.dataclass(frozen=True)
class FewShot(Probe):
    """Least squares on a few examples of each class: big_vision's `fewshot_lsr`.

    Its rule for the examples (`ridge.shots`), its standardisation and bias feature
    (`ridge.Ridge`), and the mean accuracy over its seeds 0, 1, 2. `validation` chooses the strength
    of the regularisation, at each number of shots and seed; without one it is the fixed strength
    that big_vision reports.

    Attributes:
      shots: examples of each class.
      seeds: how often they are drawn.
      strength: of the regularisation where nothing chooses it.
    """

    shots: tuple[int, ...] = (1, 5, 10, 25)
    seeds: int = 3
    strength: float = ridge.FIXED

    about: ClassVar[dict[str, About]] = {
        key: value
        for count in _KNOWN_SHOTS
        for key, value in about_accuracy(
            f"_{count}shot", f"{count}-shot", f"from {count} examples a class", count in (5, 10)
        ).items()
    }

    def classify(self, predictor, train, test, validation, classes):
        """As of `Probe`."""
        del predictor
        predicted, strengths = {}, []
        for count in self.shots:
            tries = []
            for seed in range(self.seeds):
                rows = ridge.shots(train.classes, classes, count, seed)
                fitted = ridge.Ridge.fit(train.values[rows], train.classes[rows], classes)
                strength = self.strength
                if validation is not None:
                    strength = ridge.choose(fitted, validation.values, validation.classes)
                strengths.append(strength)
                tries.append(fitted.predict(test.values, strength))
            predicted[f"_{count}shot"] = np.stack(tries)
        protocol = {
            "seeds": self.seeds,
            "regularisation": "on validation images" if validation else self.strength,
        }
        return predicted, predicted[f"_{self.shots[-1]}shot"][0], protocol


@dataclasses.dataclass(frozen=True)
class NearestNeighbours(Probe):
    """The vote of the k nearest training images by cosine: DINO's protocol (arXiv:2104.14294).

    Neighbours are exact; of equal similarities the training image that comes first is nearer; equal
    votes go to the smaller class number.

    Attributes:
      ks: numbers of neighbours to report.
      votes: "weighted" by exp(cosine / temperature), or "majority".
      temperature: of the weights.
    """

    ks: tuple[int, ...] = (10, 20, 100, 200)
    votes: str = "weighted"
    temperature: float = 0.07

    about: ClassVar[dict[str, About]] = {
        key: value
        for k in _KNOWN_KS
        for key, value in about_accuracy(
            f"_k{k}", f"{k} nearest neighbours", f"by {k} neighbours", k == 20
        ).items()
    }

    def __post_init__(self) -> None:
        choose("votes", self.votes, neighbours.VOTES)

    def classify(self, predictor, train, test, validation, classes):
        """As of `Probe`."""
        del validation
        if max(self.ks) > len(train.classes):
            raise UserError(f"k={max(self.ks)} of {len(train.classes)} training images")
        gallery, queries = neighbours.unit(train.values), neighbours.unit(test.values)
        # No item is right or wrong: ties go by number alone, never by label.
        alike = SameId(np.zeros(len(queries), np.int64), np.zeros(len(gallery), np.int64))
        nearest = search.rank(queries, gallery, alike, max(self.ks), predictor.mesh).indices
        similarities = np.stack(
            [gallery[rows] @ query for rows, query in zip(nearest, queries, strict=True)]
        )
        temperature = self.temperature if self.votes == "weighted" else None
        vote = functools.partial(neighbours.vote, classes=classes, temperature=temperature)
        labels = train.classes[nearest]
        predicted = {
            f"_k{k}": vote(similarities[:, :k], labels[:, :k])[None] for k in sorted(self.ks)
        }
        protocol = {"votes": self.votes, "similarity": "cosine"}
        if temperature is not None:
            protocol["temperature"] = temperature
        return predicted, predicted[f"_k{min(self.ks)}"][0], protocol


def _scores(
    predicted: Mapping[str, Int[np.ndarray, "tries n"]],
    train: Int[np.ndarray, " m"],
    test: Int[np.ndarray, " n"],
) -> dict[str, float | Statistic]:
    frequent = np.bincount(train).argmax()
    metrics: dict[str, float | Statistic] = {}
    for setting, tries in predicted.items():
        right: Float[np.ndarray, " n"] = (tries == test).mean(axis=0)
        metrics[f"accuracy{setting}"] = Mean.of(right)
        metrics[f"accuracy{setting}_chance"] = float((test == frequent).mean())
        metrics[f"mean_per_class{setting}"] = ClassMean(right, test)
        metrics[f"mean_per_class{setting}_chance"] = 1 / len(np.unique(test))
    return metrics | {"examples": float(len(test))}


def _overlap(train: Features, test: Features) -> dict[str, Any]:
    """Warns of test images that were trained on."""
    shared = set(train.keys) & set(test.keys)
    if not shared:
        return {}
    logging.warning(
        "%d of %d test records have the key of a training record (the first: %r)",
        len(shared),
        len(test),
        min(shared),
    )
    return {"test images also trained on": len(shared)}
