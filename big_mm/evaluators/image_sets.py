"""What sets of images show more often than they should: no generator is needed, only its images.

Each record says by a text feature to which set its image belongs: the prompt that made it, an
occupation, a place. The classifier or encoder is the evaluated model, whose own skew is part of
every number.
"""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from big_mm.data.records import Source
from big_mm.evaluators import base, features
from big_mm.evaluators.base import About
from big_mm.metrics import bias, clip_score
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class AttributeShares(base.Evaluator):
    """How far the attributes shown in each set are from equal, or from given shares
    (MAGBIG, arXiv:2401.16092; arXiv:2304.06034).

    Each image is given the attribute whose text is nearest. `alignment` is the mean CLIPScore
    (arXiv:2104.08718) of image and prompt, if there is a prompt. Chance is what sets of these sizes
    deviate by that were drawn at the reference shares. MAGBIG's program sums over the attributes
    where this takes their mean: half of its figure for two.

    Attributes:
      source: records with an image and a group.
      attributes: a text for each attribute: "a photo of a woman", ...
      group: text feature: the set, such as the occupation that a prompt asked for.
      language: text feature, or None: sets of several languages are kept apart, and a language's
        deviation is the mean of its sets'.
      reference: the share that each attribute ought to have; none: equal shares.
      errors: the sensitivity to the classifier: rates of wrong attributes, alike for all of them,
        without which the deviation is given again.
      prompt: text feature with what the image was to show, or None.
      batch_size: images prepared at a time.
    """

    source: Source
    attributes: tuple[str, ...]
    group: str = "group"
    language: str | None = None
    reference: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    prompt: str | None = None
    batch_size: int = 256

    place: ClassVar[int] = 70
    about: ClassVar[dict[str, About]] = {
        "deviation": About(
            "Deviation from the reference shares",
            "mean absolute deviation of the attributes' shares, mean over the sets",
            headline=True,
            lower_is_better=True,
        ),
        "gap": About(
            "Deviation, gap",
            "between the languages that deviate most and least",
            "share",
            False,
            True,
        ),
        "alignment": About("Alignment", "CLIPScore of image and prompt", "score"),
    }

    def __post_init__(self) -> None:
        if bad := [e for e in self.errors if not 0 <= e < 1 - 1 / len(self.attributes)]:
            raise UserError(
                f"errors={bad[0]}: an attribute must be right more often than by chance"
            )
        if len(set(self.attributes)) < max(2, len(self.attributes)):
            raise UserError("attribute shares need at least two different attributes")
        if self.reference and (
            len(self.reference) != len(self.attributes) or abs(sum(self.reference) - 1) > 1e-6
        ):
            raise UserError(
                f"reference={self.reference} must be {len(self.attributes)} shares that sum to 1"
            )

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: deviation and its chance level, deviation_GROUP (of several languages:
        deviation_LANGUAGE and gap), deviation_error_RATE, alignment (_LANGUAGE), groups, examples.

        Raises:
          UserError: a record without group or language, or a model without embeddings.
        """
        images, features, keys = _embed(self, predictor, self.group, self.language, self.prompt)
        groups, languages, prompts = features
        texts = predictor.encode_text(list(self.attributes)).astype(np.float64)
        label = (images @ texts.T).astype(np.float32).argmax(axis=1)
        sets = list(zip(languages or [""] * len(groups), groups, strict=True))
        names = sorted(set(sets))
        number = np.array([names.index(one) for one in sets])
        classes = len(self.attributes)
        reference = np.array(self.reference or [1 / classes] * classes)
        found = [bias.shares(label[number == i], classes) for i in range(len(names))]
        metrics: dict[str, float | Statistic] = {
            "deviation": bias.Deviation(
                label, number, np.broadcast_to(reference, (len(label), classes))
            ),
            "deviation_chance": _mean(
                bias.fair_deviation(reference, n) for n in np.bincount(number).tolist()
            ),
            "groups": float(len(names)),
            "examples": float(len(label)),
        }
        for rate in self.errors:
            corrected = (bias.without_error(shares, rate) for shares in found)
            metrics[f"deviation_error_{rate:g}"] = _mean(
                bias.deviation(shares, reference) for shares in corrected
            )
        by: dict[str, list[float]] = collections.defaultdict(list)
        for (language, group), shares in zip(names, found, strict=True):
            by[language or group].append(bias.deviation(shares, reference))
        metrics |= {f"deviation_{name}": _mean(deviations) for name, deviations in by.items()}
        if languages:
            means = [_mean(deviations) for deviations in by.values()]
            metrics["gap"] = max(means) - min(means)
        if prompts:
            said = predictor.encode_text([clip_score.PREFIX + prompt for prompt in prompts])
            scores = clip_score.clip_score(images, said)
            metrics["alignment"] = Mean.of(scores)
            for language in sorted(set(languages)):
                of = np.array(languages) == language
                metrics[f"alignment_{language}"] = Mean(scores * of, of.astype(np.float64))
        table = {
            f"{language}: {group}" if language else group: dict(
                zip(self.attributes, shares.tolist(), strict=True)
            )
            for (language, group), shares in zip(names, found, strict=True)
        }
        of = dict(zip(self.attributes, reference.tolist(), strict=True))
        protocol = {"attributes": list(self.attributes), "reference": reference.tolist()}
        shown = {"kind": "shares", "reference": of, "sets": table}
        return base.Result(metrics, {"shares": shown}, keys, protocol)


@dataclasses.dataclass(frozen=True)
class SetDistances(base.Evaluator):
    """How far each set lies from one of them, such as the places from what a prompt without a place
    gives (arXiv:2304.06034): Frechet distance of unit embeddings.

    Attributes:
      source: records with an image and a group.
      anchor: the set to compare with.
      group: text feature: the set.
      batch_size: images prepared at a time.
    """

    source: Source
    anchor: str
    group: str = "group"
    batch_size: int = 256

    place: ClassVar[int] = 71

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: distance_GROUP, examples; the artifact names the nearest set.

        Raises:
          UserError: no record of the anchor, fewer than two sets, or a model without embeddings.
        """
        images, (groups,), keys = _embed(self, predictor, self.group)
        names = sorted(set(groups) - {self.anchor})
        groups = np.array(groups)
        own = images[groups == self.anchor]
        if not len(own) or not names:
            raise UserError(
                f"{self.group!r} needs {self.anchor!r} and another set; there are "
                f"{', '.join(sorted(set(groups.tolist())))}"
            )
        if small := [n for n in (self.anchor, *names) if np.sum(groups == n) < 2]:
            raise UserError(f"{self.group} {small[0]!r} has a single image: no distance")
        distances = {name: bias.frechet(own, images[groups == name]) for name in names}
        metrics = {f"distance_{name}": value for name, value in distances.items()}
        metrics["examples"] = float(len(keys))
        nearest = min(distances, key=distances.get)
        shown = {"kind": "distances", "anchor": self.anchor, "nearest": nearest, "sets": distances}
        protocol = {"anchor": self.anchor, "distance": "Frechet, unit embeddings"}
        return base.Result(metrics, {"distances": shown}, keys, protocol)


@dataclasses.dataclass(frozen=True)
class ClusterBias(base.Evaluator):
    """Over which clusters of identities the images of each set are spread, without a label for
    anyone (Stable Bias, arXiv:2303.11408).

    Images of the identity sets are clustered; each other image goes to the nearest cluster. The
    entropy of a set's clusters is its diversity; over-representation is a cluster's share in a set
    minus its share among the identity images.

    Attributes:
      source: records with an image and a group.
      identities: the sets that are clustered (prompts that span gender and ethnicity).
      group: text feature: the set.
      clusters: the paper's are 12, 24 and 48.
      batch_size: images prepared at a time.
    """

    source: Source
    identities: tuple[str, ...]
    group: str = "group"
    clusters: int = 12
    batch_size: int = 256

    place: ClassVar[int] = 72
    about: ClassVar[dict[str, About]] = {
        "entropy": About(
            "Cluster entropy", "diversity of the sets' images over identity clusters", "nats"
        ),
        "over_representation": About(
            "Over-representation",
            "largest excess of a cluster's share in a set over that among the identities",
            lower_is_better=True,
        ),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: entropy and entropy_GROUP (statistics over the other sets' images), its largest
        possible value, over_representation, examples.

        Raises:
          UserError: no record of an identity, no other set, or a model without embeddings.
        """
        images, (groups,), keys = _embed(self, predictor, self.group)
        if missing := sorted(set(self.identities) - set(groups)):
            raise UserError(f"no record has the {self.group} {missing[0]!r}")
        known = np.isin(groups, self.identities)
        if known.all():
            raise UserError(f"every record has a {self.group} among the identities")
        if known.sum() < max(2, self.clusters):
            raise UserError(
                f"{known.sum()} identity images are too few for {self.clusters} clusters"
            )
        clusters = bias.Clusters.of(images[known], self.clusters)
        label = clusters.assign(images[~known])
        names, number = np.unique(np.array(groups)[~known], return_inverse=True)
        size = len(clusters.centres)
        expected = bias.shares(clusters.labels, size)
        metrics: dict[str, float | Statistic] = {
            "entropy": bias.Entropy(label, number),
            "entropy_largest": float(np.log(size)),
            "examples": float(len(label)),
        }
        excess = {}
        for i, name in enumerate(names.tolist()):
            found = bias.shares(label[number == i], size)
            metrics[f"entropy_{name}"] = bias.entropy(found)
            excess[name] = (found - expected).tolist()
        metrics["over_representation"] = max(map(max, excess.values()))
        table = {
            "kind": "clusters",
            "identities": [
                dict(collections.Counter(np.array(groups)[known][clusters.labels == i].tolist()))
                for i in range(size)
            ],
            "over_representation": excess,
        }
        protocol = {"clusters": size, "method": "Ward", "identities": list(self.identities)}
        kept = [key for key, identity in zip(keys, known, strict=True) if not identity]
        return base.Result(metrics, {"clusters": table}, kept, protocol)


def _embed(
    evaluator: Any, predictor: Predictor, *names: str | None
) -> tuple[Float[np.ndarray, "image width"], list[list[str]], list[str]]:
    """Unit embeddings of the sound records, the first text of each feature (none of None), keys."""
    embeddings, keys = [], []
    found: list[list[str]] = [[] for _ in names]
    for batch in features.embedded(predictor, evaluator.source, evaluator.batch_size):
        embeddings.append(batch["image_embedding"])
        for texts, name in zip(found, names, strict=True):
            if name is not None:
                texts += [row[0] for row in base.captions_of(batch, name)]
        keys += list(map(str, batch["key"]))
    return np.concatenate(embeddings).astype(np.float64), found, keys


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
