"""ROUGE-L, equal to pycocoevalcap 1.2."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_BETA = 1.2  # recall counts more than precision; the value of the COCO caption evaluation


def rouge_l(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, " caption"]:
    """ROUGE-L in 0..1 of each tokenised caption (`ptb.tokenize`); the official score is the mean.

    Precision and recall come from the longest common subsequence, each the best over the
    references, possibly of two different ones. An empty caption counts as one empty word, so it
    scores 1 against an empty reference, as in the official code.
    """
    pairs = zip(predictions, references, strict=True)
    return np.array([_one(p.split(" "), [r.split(" ") for r in refs]) for p, refs in pairs])


def _one(prediction: list[str], references: list[list[str]]) -> float:
    common = [_longest_common(prediction, reference) for reference in references]
    precision = max(common) / len(prediction)
    recall = max(c / len(reference) for c, reference in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence of words."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]
