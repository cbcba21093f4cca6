"""CIDEr-D, equal to pycocoevalcap 1.2 (which calls it CIDEr)."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from big_mm.metrics import ngrams
from big_mm.metrics.ngrams import Ngram

_MAX_N = 4
_SIGMA = 6.0  # of the Gaussian length penalty, in bigrams


@dataclasses.dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' references each n-gram occurs, out of `documents` images."""

    counts: Mapping[Ngram, int]
    documents: int

    @classmethod
    def of(cls, references: Sequence[Sequence[str]]) -> "DocumentFrequency":
        """Counts over tokenised references, one list of captions an image."""
        counts: collections.Counter[Ngram] = collections.Counter()
        for captions in references:
            counts.update(set().union(*(ngrams.count(c, _MAX_N) for c in captions)))
        return cls(counts, len(references))

    def weight(self, ngram: Ngram) -> float:
        """Inverse document frequency; an unseen n-gram weighs as one seen in a single image."""
        return math.log(self.documents) - math.log(max(1, self.counts.get(ngram, 0)))


def cider_d(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    frequency: DocumentFrequency | None = None,
) -> Float[np.ndarray, " caption"]:
    """CIDEr-D of each tokenised caption (`ptb.tokenize`), 0..10; the official score is the mean.

    Papers print it times 100. Quirks that belong to the published numbers (arXiv:1411.5726 and the
    COCO code):

    - The document frequency comes from the references being scored, unless `frequency` is given. So
      a score over a subset, or a mean of scores over parts, is another metric. Give a fixed
      frequency for rewards in training.
    - An n-gram in every image's references weighs nothing. A single image therefore scores 0
      whatever is said, and so does a corpus whose references are all alike.
    - The length penalty compares numbers of bigrams, not of words.
    """
    if frequency is None:
        frequency = DocumentFrequency.of(references)
    scores = []
    for prediction, captions in zip(predictions, references, strict=True):
        vector = _Vector.of(prediction, frequency)
        similarities = [vector.similarity(_Vector.of(c, frequency)) for c in captions]
        scores.append(10 * float(np.mean(similarities)))
    return np.array(scores)


@dataclasses.dataclass(frozen=True)
class _Vector:
    """TF-IDF weights of a caption's n-grams, their norm for each n, and its number of bigrams."""

    weights: Mapping[Ngram, float]
    norms: tuple[float, ...]
    bigrams: int

    @classmethod
    def of(cls, caption: str, frequency: DocumentFrequency) -> "_Vector":
        counts = ngrams.count(caption, _MAX_N)
        weights = {ngram: n * frequency.weight(ngram) for ngram, n in counts.items()}
        squares = [0.0] * _MAX_N
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        bigrams = sum(n for ngram, n in counts.items() if len(ngram) == 2)
        return cls(weights, tuple(math.sqrt(s) for s in squares), bigrams)

    def similarity(self, reference: "_Vector") -> float:
        """Clipped cosine, averaged over n, times the length penalty."""
        products = [0.0] * _MAX_N
        for ngram, weight in self.weights.items():
            other = reference.weights.get(ngram, 0.0)
            products[len(ngram) - 1] += min(weight, other) * other
        cosines = [
            p / (a * b) if a and b else p
            for p, a, b in zip(products, self.norms, reference.norms, strict=True)
        ]
        delta = self.bigrams - reference.bigrams
        return sum(cosines) / _MAX_N * math.exp(-(delta**2) / (2 * _SIGMA**2))
