"""How skewed a set of images is, from labels, captions or embeddings of it."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from scipy.cluster import hierarchy

from big_mm.metrics.statistics import Statistic, Weights


def shares(
    labels: Int[np.ndarray, " image"], classes: int, weights: Weights | None = None
) -> Float[np.ndarray, " classes"]:
    """The share of each class among the (weighted) images."""
    counts = np.bincount(labels, weights, minlength=classes).astype(np.float64)
    return counts / counts.sum()


def deviation(
    found: Float[np.ndarray, " classes"], reference: Float[np.ndarray, " classes"]
) -> float:
    """Mean absolute deviation of shares from those of a reference: uniform (arXiv:2401.16092), or
    such as labour statistics (arXiv:2304.06034).
    """
    return float(np.abs(found - reference).mean())


def fair_deviation(reference: Float[np.ndarray, " classes"], images: int) -> float:
    """The `deviation` to expect of so many images drawn at the reference shares themselves."""
    counts = np.arange(images + 1)
    chances = stats.binom.pmf(counts[:, None], images, reference)
    return float((chances * np.abs(counts[:, None] / images - reference)).sum(axis=0).mean())


def without_error(
    found: Float[np.ndarray, " classes"], error: float
) -> Float[np.ndarray, " classes"]:
    """The shares behind those that a classifier gives which errs in so many cases, for each of the
    other classes alike (Forman 2008, adjusted count); what leaves 0..1 is cut off.
    """
    classes = len(found)
    even = error / (classes - 1)
    true = np.clip((found - even) / (1 - error - even), 0, None)
    return true / true.sum()


def entropy(found: Float[np.ndarray, " classes"]) -> float:
    """Of shares, in nats."""
    there = found[found > 0]
    return float(-(there * np.log(there)).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Deviation(Statistic):
    """`deviation` of each group's labels, mean over the groups that occur.

    Attributes:
      reference: the shares, the same for all images.
    """

    label: Int[np.ndarray, " image"]
    group: Int[np.ndarray, " image"]
    reference: Float[np.ndarray, "image classes"]

    def __call__(self, weights: Weights) -> float:
        reference = self.reference[0]
        found = []
        for one in np.unique(self.group[weights > 0]):
            of = self.group == one
            found.append(deviation(shares(self.label[of], len(reference), weights[of]), reference))
        return float(np.mean(found))


@dataclasses.dataclass(frozen=True, eq=False)
class Entropy(Statistic):
    """`entropy` of each group's labels, mean over the groups that occur."""

    label: Int[np.ndarray, " image"]
    group: Int[np.ndarray, " image"]

    def __call__(self, weights: Weights) -> float:
        found = []
        for one in np.unique(self.group[weights > 0]):
            of = self.group == one
            found.append(entropy(shares(self.label[of], int(self.label.max()) + 1, weights[of])))
        return float(np.mean(found))


def distribution_bias(counts: Sequence[int]) -> float:
    """The area under the objects' frequencies in descending order, brought to 0..1 (least to most
    frequent; all equal: 1), by trapezoids (arXiv:2312.13053). It grows with the number of objects:
    compare sets of equally many images.
    """
    ordered = np.sort(np.asarray(counts, np.float64))[::-1]
    spread = ordered.max() - ordered.min()
    heights = (ordered - ordered.min()) / spread if spread else np.ones_like(ordered)
    return float(np.trapezoid(heights))


def hallucination(prompt: Collection[str], caption: Collection[str]) -> float:
    """1 - Jaccard index of the objects asked for and the objects described (arXiv:2312.13053); 0 if
    there are none at all.
    """
    union = set(prompt) | set(caption)
    return 1 - len(set(prompt) & set(caption)) / len(union) if union else 0.0


def frechet(first: Float[np.ndarray, "n width"], second: Float[np.ndarray, "m width"]) -> float:
    """The Frechet distance of two sets of embeddings, as Gaussians (FID's, arXiv:1706.08500).

    Of at least two each; sets of fewer embeddings than dimensions look farther apart than they are.
    """
    width = first.shape[1]
    means = first.mean(axis=0), second.mean(axis=0)
    root, other = (np.cov(x, rowvar=False).reshape(width, width) for x in (first, second))
    values, vectors = np.linalg.eigh(root)
    half = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ other @ half), 0)).sum()
    apart = ((means[0] - means[1]) ** 2).sum()
    return float(apart + np.trace(root) + np.trace(other) - 2 * cross)


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Ward clusters of unit embeddings, and the cluster of any other embedding: that of the largest
    inner product with a centre (arXiv:2303.11408).
    """

    centres: Float[np.ndarray, "cluster width"]
    labels: Int[np.ndarray, " image"]

    @classmethod
    def of(cls, embeddings: Float[np.ndarray, "image width"], count: int) -> "Clusters":
        """At most `count` clusters; memory grows with the square of the images."""
        tree = hierarchy.linkage(embeddings, method="ward")
        labels = hierarchy.fcluster(tree, count, criterion="maxclust") - 1
        centres = np.stack([embeddings[labels == i].mean(axis=0) for i in range(labels.max() + 1)])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        return cls(centres, labels.astype(np.int64))

    def assign(self, embeddings: Float[np.ndarray, "image width"]) -> Int[np.ndarray, " image"]:
        """The cluster of each."""
        return (embeddings @ self.centres.T).argmax(axis=1)
