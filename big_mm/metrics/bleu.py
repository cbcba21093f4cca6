"""Corpus BLEU, equal to pycocoevalcap 1.2."""

import collections
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from big_mm.metrics import ngrams

# The official constants: an n-gram order without a match leaves a tiny score, not zero.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]], max_n: int = 4
) -> Float[np.ndarray, " max_n"]:
    """BLEU-1..max_n in 0..1 of tokenised captions (`ptb.tokenize`), over the whole corpus.

    Matches are clipped to the largest count in any one reference and summed over the corpus before
    dividing; the brevity penalty uses for each caption the reference length closest to its own, the
    shorter one on ties (Papineni et al. 2002, ACL P02-1040, with the scorer's smoothing constants).
    """
    correct, guesses = np.zeros(max_n), np.zeros(max_n)
    length = closest = 0
    for prediction, captions in zip(predictions, references, strict=True):
        counts = ngrams.count(prediction, max_n)
        limits: collections.Counter = collections.Counter()
        for caption in captions:
            limits |= ngrams.count(caption, max_n)
        words = len(prediction.split())
        length += words
        closest += min((abs(n - words), n) for n in (len(c.split()) for c in captions))[1]
        guesses += np.maximum(0, words - np.arange(max_n))
        for ngram, matches in (counts & limits).items():
            correct[len(ngram) - 1] += matches
    precisions = (correct + _TINY) / (guesses + _SMALL)
    scores = np.cumprod(precisions) ** (1 / np.arange(1, max_n + 1))
    ratio = (length + _TINY) / (closest + _SMALL)
    return scores * math.exp(min(0.0, 1 - 1 / ratio))
