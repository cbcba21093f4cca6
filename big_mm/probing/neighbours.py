"""Votes of the nearest training examples (k-NN on cosine similarity)."""

import numpy as np
from jaxtyping import Float, Int, Real

VOTES = ("weighted", "majority")


def unit(features: Real[np.ndarray, "n width"]) -> Float[np.ndarray, "n width"]:
    """Rows of length one in float32; a row of zeros stays one."""
    values = features.astype(np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(length > 0, length, 1)).astype(np.float32)


def vote(
    similarities: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, "n k"],
    classes: int,
    temperature: float | None,
) -> Int[np.ndarray, " n"]:
    """The class with the most votes of the k neighbours, of equal ones the smallest number.

    Args:
      labels: the neighbours' classes.
      temperature: a neighbour's vote weighs exp(similarity / temperature), as in DINO
        (arXiv:2104.14294, after arXiv:1805.01978) with 0.07; None: all weigh the same.
    """
    weights = np.ones(similarities.shape)
    if temperature is not None:
        # Relative to the nearest, which has the largest: nothing overflows.
        nearest = similarities.astype(np.float64) - similarities.max(axis=1, keepdims=True)
        weights = np.exp(nearest / temperature)
    votes = np.zeros((len(labels), classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return votes.argmax(axis=1)
