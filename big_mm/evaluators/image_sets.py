"""What sets of images show more often than they should: no generator is needed, only its images.

Each record says by a text feature to which set its image belongs: the prompt that made it, an
occupation, a place. The classifier or encoder is the evaluated model, whose own skew is part of
every number.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float

from big_mm.data.contract import Decoding
from big_mm.data.records import Source
from big_mm.evaluators import base, features
from big_mm.evaluators.base import About
from big_mm.evaluators.scoring import Similarity
from big_mm.metrics import bias, clip_score
from big_mm.metrics.choice import chosen
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class AttributeShares(base.Evaluator):
    """How far the attributes shown in each set are from equal, or from given shares
    (arXiv:2401.16092, arXiv:2304.06034).

    Each image is given the attribute whose text is nearest. An evaluation over languages has the
    language in `group`. `alignment` is the mean CLIPScore (arXiv:2104.08718) of image and prompt,
    if there is a prompt.

    Attributes:
      source: records with an image and a group.
      attributes: a text for each attribute: "a photo of a woman", ...
      group: text feature: the set.
      reference: the share that each attribute ought to have; none: equal shares.
      prompt: text feature with what the image was to show, or None.
      batch_size: images prepared at a time.
    """

    source: Source
    attributes: tuple[str, ...]
    group: str = "group"
    reference: tuple[float, ...] = ()
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
        "alignment": About("Alignment", "CLIPScore of image and prompt", "score"),
    }

    def __post_init__(self) -> None:
        if len(set(self.attributes)) < max(2, len(self.attributes)):
            raise UserError("attribute shares need at least two different attributes")
        if self.reference and (
            len(self.reference) != len(self.attributes) or abs(sum(self.reference) - 1) > 1e-6
        ):
            raise UserError(
                f"reference={self.reference} must be {len(self.attributes)} shares that sum to 1"
            )

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: deviation, deviation_GROUP, alignment, groups, examples.

        Raises:
          UserError: a record without group, or a model without embeddings.
        """
        images, groups, keys, prompts = _embed(self, predictor, self.prompt)
        texts = predictor.encode_text(list(self.attributes)).astype(np.float64)
        label = (images @ texts.T).astype(np.float32).argmax(axis=1)
        names, number = np.unique(groups, return_inverse=True)
        classes = len(self.attributes)
        reference = np.array(self.reference or [1 / classes] * classes)
        rows = np.broadcast_to(reference, (len(label), classes))
        metrics: dict[str, float | Statistic] = {
            "deviation": bias.Deviation(label, number, rows),
            "deviation_chance": 0.0,
            "groups": float(len(names)),
            "examples": float(len(label)),
        }
        table = {}
        for i, name in enumerate(names.tolist()):
            found = bias.shares(label[number == i], classes)
            metrics[f"deviation_{name}"] = bias.deviation(found, reference)
            table[name] = dict(zip(self.attributes, found.tolist(), strict=True))
        if prompts:
            said = predictor.encode_text([clip_score.PREFIX + prompt for prompt in prompts])
            metrics["alignment"] = Mean.of(clip_score.clip_score(images, said))
        protocol = {"attributes": list(self.attributes), "reference": reference.tolist()}
        return base.Result(metrics, {"shares": {"kind": "shares", "sets": table}}, keys, protocol)


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
        images, groups, keys, _ = _embed(self, predictor)
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
        shown = {"kind": "distances", "nearest": min(distances, key=distances.get), **distances}
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
        images, groups, keys, _ = _embed(self, predictor)
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


class Objects(Protocol):
    """The objects that a text names."""

    def __call__(self, text: str) -> Sequence[str]: ...


# Words that are no objects, in prompts and short captions.
_NO_OBJECTS = frozenset(
    """a an the this that these those there it its his her their our my your some any each other
    another both all many few several one two three four five six seven eight nine ten and or but
    with without of on in at by to from for into onto over under above below behind beside between
    near next front back top bottom left right up down out off around through inside outside along
    is are was be been being has have having do does not no as like very who which what while
    photo picture image painting drawing view scene background""".split()
)


@dataclasses.dataclass(frozen=True)
class ContentWords:
    """The words of a text but for function words, each once: the official program's way to take
    nouns without a tagger, so adjectives and verbs count too. Synonyms and plurals stay apart.
    """

    also_left_out: tuple[str, ...] = ()

    def __call__(self, text: str) -> Sequence[str]:
        words = dict.fromkeys(re.findall(r"[^\W_]+", text.lower()))
        return [w for w in words if w not in _NO_OBJECTS and w not in self.also_left_out]


@dataclasses.dataclass(frozen=True)
class PromptBias(base.Evaluator):
    """What images show that nobody asked for: distribution bias, Jaccard hallucination and miss
    rate of images and the prompts that made them (arXiv:2312.13053).

    Objects come from captions of the images, the model's own or a text feature; with a feature and
    its own captions as prompts it measures a caption data set. An image misses its prompt if the
    text " " fits it as well or better, as in the official program.

    Attributes:
      source: records with an image and a prompt.
      objects: an `Objects`; it also decides which words are one thing.
      prompt: text feature.
      captions: text feature of which the first counts, or None: the model's own.
      decoding: of its own captions; None takes the contract's.
      batch_size: images prepared at a time.
    """

    source: Source
    objects: Any = ContentWords()
    prompt: str = "prompt"
    captions: str | None = None
    decoding: Decoding | None = None
    batch_size: int = 256

    place: ClassVar[int] = 73
    about: ClassVar[dict[str, About]] = {
        "distribution_bias": About(
            "Distribution bias", "area under the frequencies of objects not asked for", "score"
        ),
        "hallucination": About(
            "Hallucination",
            "1 - Jaccard index of objects asked for and shown",
            lower_is_better=True,
        ),
        "miss_rate": About("Miss rate", "images that miss their prompt", lower_is_better=True),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: distribution_bias, hallucination, miss_rate, objects, examples.

        Raises:
          UserError: a record without prompt, or a model without embeddings or captions.
        """
        how = self.decoding or predictor.contract.decoding
        unasked: collections.Counter = collections.Counter()
        hallucinated: list[float] = []
        missed: list[bool] = []
        keys: list[str] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size):
            prompts = [texts[0] for texts in base.captions_of(batch, self.prompt)]
            if self.captions is None:
                tokens, _ = predictor.generate(batch["image"], how, seed=len(keys))
                said = predictor.contract.detokenize(tokens)
            else:
                said = [texts[0] for texts in base.captions_of(batch, self.captions)]
            for prompt, caption in zip(prompts, said, strict=True):
                asked, shown = set(self.objects(prompt)), set(self.objects(caption))
                unasked.update(shown - asked)
                hallucinated.append(bias.hallucination(asked, shown))
            pairs = [(prompt, " ") for prompt in prompts]
            scores = Similarity()(predictor, batch["image"], pairs, [""] * len(pairs))
            missed += (chosen(scores, np.zeros(len(pairs), int)) != 0).tolist()
            keys += list(map(str, batch["key"]))
        metrics: dict[str, float | Statistic] = {
            "distribution_bias": bias.distribution_bias(list(unasked.values()) or [0]),
            "hallucination": Mean.of(hallucinated),
            "miss_rate": Mean.of(missed),
            "objects": float(len(unasked)),
            "examples": float(len(keys)),
        }
        shown = {"kind": "objects", "unasked": dict(unasked.most_common(30))}
        protocol = {
            "captions": self.captions or "the model's own",
            "missed": 'against the text " "',
        }
        return base.Result(metrics, {"objects": shown}, keys, protocol)


def _embed(
    evaluator: Any, predictor: Predictor, prompt: str | None = None
) -> tuple[Float[np.ndarray, "image width"], list[str], list[str], list[str]]:
    """Unit embeddings, sets, keys and prompts of the sound records."""
    embeddings, groups, keys, prompts = [], [], [], []
    for batch in features.embedded(predictor, evaluator.source, evaluator.batch_size):
        embeddings.append(batch["image_embedding"])
        groups += [texts[0] for texts in base.captions_of(batch, evaluator.group)]
        if prompt is not None:
            prompts += [texts[0] for texts in base.captions_of(batch, prompt)]
        keys += list(map(str, batch["key"]))
    return np.concatenate(embeddings).astype(np.float64), groups, keys, prompts
