"""Corpus BLEU, equal to pycocoevalcap 1.2."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from big_mm.metrics import ngrams
from big_mm.metrics.statistics import Statistic, Values, Weights

# The official constants: an n-gram order without a match leaves a tiny score, not zero.
_TINY, _SMALL = 1e-15, 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Bleu(Statistic):
    """BLEU of the order that the arrays have columns for, in 0..1.

    Matches are clipped to the largest count in any one reference and summed over the corpus before
    dividing; the brevity penalty uses for each caption the reference length closest to its own, the
    shorter one on ties (Papineni et al. 2002, ACL P02-1040, with the scorer's smoothing constants).

    Attributes:
      correct, guesses: clipped matches and n-grams of each caption, by order.
      length, closest: words of each caption and of its closest reference.
    """

    correct: Float[np.ndarray, "image order"]
    guesses: Float[np.ndarray, "image order"]
    length: Values
    closest: Values

    def __call__(self, weights: Weights) -> float:
        correct, guesses = weights @ self.correct, weights @ self.guesses
        precisions = (correct + _TINY) / (guesses + _SMALL)
        score = float(np.prod(precisions)) ** (1 / len(precisions))
        ratio = (weights @ self.length + _TINY) / (weights @ self.closest + _SMALL)
        return score * math.exp(min(0.0, 1 - 1 / ratio))


def bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]], max_n: int = 4
) -> list[Bleu]:
    """BLEU-1..max_n of tokenised captions (`ptb.tokenize`)."""
    correct = np.zeros((len(predictions), max_n))
    guesses, length, closest = np.zeros_like(correct), correct[:, 0].copy(), correct[:, 0].copy()
    for row, (prediction, captions) in enumerate(zip(predictions, references, strict=True)):
        counts = ngrams.count(prediction, max_n)
        limits: collections.Counter = collections.Counter()
        for caption in captions:
            limits |= ngrams.count(caption, max_n)
        words = len(prediction.split())
        length[row] = words
        closest[row] = min((abs(n - words), n) for n in (len(c.split()) for c in captions))[1]
        guesses[row] = np.maximum(0, words - np.arange(max_n))
        for ngram, matches in (counts & limits).items():
            correct[row, len(ngram) - 1] += matches
    return [Bleu(correct[:, :n], guesses[:, :n], length, closest) for n in range(1, max_n + 1)]
